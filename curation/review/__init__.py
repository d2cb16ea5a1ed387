"""What people look at: pictures of pairs and fields, the page that shows them, and the contact sheet.

`pictures` turns arrays into pictures; `folder` writes the folder of the page, whose own files are in `page/`; `sheet`
draws the contact sheet. They know no datasets: whoever calls them gives arrays and texts.
"""
