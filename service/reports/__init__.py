"""The verification report as people look at it: one page of facts, drawn as HTML or as a PNG. Pure: values in, bytes out.

report.json ─ contents.page ─┬─ html.render ─ charts on an SvgPen
                             └─ png.render ── charts on a PaperPen
"""
