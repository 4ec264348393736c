"""A report of a job, parsed: its tables, headings, images, links, and tags that stay open."""

import html.parser

# A name that a page must escape.
AWKWARD = "a <b>&\"photo\"</b> of a {}.<script>alert('1')</script>"


class Page(html.parser.HTMLParser):
  """Tables, headings, images, links and open tags of a page."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.headings, self.images, self.links = [], [], [], []
    self.tags, self.open, self.text = set(), [], ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.tags.add(tag)
    if tag not in ("meta", "img", "br", "wbr"):
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")
    elif tag in ("h1", "h2"):
      self.headings.append("")
    elif tag == "img":
      self.images.append(attributes)
    elif tag == "a":
      self.links.append(attributes["href"])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
    if {"td", "th"} & set(self.open[-2:]):
      self.tables[-1][-1][-1] += data
    elif self.open and self.open[-1] in ("h1", "h2"):
      self.headings[-1] += data

  def table(self, *columns):
    """Rows of the one table with these first columns."""
    [found] = [table for table in self.tables if tuple(table[0][: len(columns)]) == columns]
    return found[1:]
