"""Checks the internal links of a built site. Usage: check_links.py FOLDER"""

import pathlib
import sys
import urllib.parse

from bs4 import BeautifulSoup

site = pathlib.Path(sys.argv[1]).resolve()
if not (site / "index.html").is_file():
    sys.exit(f"There is no index.html in {site}.")
pages = {
    path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for path in site.rglob("*.html")
}
places = {
    path: {element.get("id") or element.get("name") for element in page(True)}
    for path, page in pages.items()
}
number, broken = 0, []
for path, page in pages.items():
    for element in page(["a", "img", "link", "script", "source"]):
        link = urllib.parse.urlsplit(element.get("href") or element.get("src") or "")
        if link.scheme not in ("", "file") or not (link.path or link.fragment):
            continue
        number += 1
        target = path.parent / urllib.parse.unquote(link.path) if link.path else path
        target = target.resolve()
        place = urllib.parse.unquote(link.fragment)
        exists = target.is_file() and target.is_relative_to(site)
        if not exists or (place and place not in places.get(target, {place})):
            broken.append(f"{path.relative_to(site)}: {link.geturl()}")
print(f"{number} links in {len(pages)} pages, {len(broken)} of them broken")
sys.exit("\n".join(broken) or None)
