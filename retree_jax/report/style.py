"""The style sheet of the report: phone to desktop, light and dark, print."""

STYLE = """
:root{--ground:#fbfaf8;--card:#fff;--ink:#1d2329;--soft:#59636e;--line:#d9dde2;--real:#2b6cb0;--made:#c2560a;--null:#7a828c;
--good:#1a7f4b;--caution:#96690a;--bad:#b3261e;--unknown:#5b6672}
@media(prefers-color-scheme:dark){:root{--ground:#14181c;--card:#1c2228;--ink:#e8ebee;--soft:#a6b0ba;--line:#343d46;--real:#7db4ee;
--made:#f59e54;--null:#98a2ad;--good:#5fce93;--caution:#e3b341;--bad:#ff8a80;--unknown:#a6b0ba}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 8px}
h2{font-size:1.3rem;margin:40px 0 8px}
h3{font-size:1.05rem;margin:20px 0 6px}
p{margin:6px 0;max-width:76ch}
.lead,.basis,footer,figcaption,dd{color:var(--soft)}
.verdicts{list-style:none;margin:12px 0;padding:0;display:grid;gap:10px}
.verdict{background:var(--card);border:1px solid var(--line);border-left:6px solid var(--tone);border-radius:8px;
padding:12px 16px;display:grid;grid-template-columns:215px 1fr;gap:4px 16px}
.verdict h3{margin:0 0 2px}
.verdict .level{color:var(--tone);font-weight:600;margin:0}
.verdict .basis{font-size:.86rem}
.sign{display:inline-block;width:1.5em;height:1.5em;line-height:1.5em;margin-right:.5em;border-radius:50%;text-align:center;
background:var(--tone);color:var(--card);font-weight:700}
.good{--tone:var(--good)}.caution{--tone:var(--caution)}.bad{--tone:var(--bad)}.unknown{--tone:var(--unknown)}
.notes{border:1px solid var(--line);border-radius:8px;padding:4px 16px 10px;margin:12px 0}
.notes h3{margin:8px 0 2px}.notes ul{margin:0;padding-left:20px}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:28px}
.eyes{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:10px}
code{white-space:nowrap}
figure{margin:0}
small{color:var(--soft);font-weight:400}
figcaption{font-size:.8rem;overflow-wrap:anywhere}
.eye img,.near img{display:block;width:100%;height:auto;background:#000;border-radius:4px;margin-bottom:3px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:22px 26px;margin-top:14px}
.charts figcaption{font-size:.92rem;color:var(--ink);font-weight:600;margin-bottom:4px}
.chart{display:block;width:100%;height:auto;overflow:visible}
.chart.wide{max-width:640px;margin-top:8px}
.chart text{fill:var(--soft);font-size:11px}
.chart.wide text{fill:var(--ink);font-size:13px}
.chart.wide .tick{fill:var(--soft);font-size:11px}
.axis,.rule{stroke:var(--line)}
.real-fill{fill:var(--real);fill-opacity:.38;stroke:none}
.made-line{fill:none;stroke:var(--made);stroke-width:2;stroke-dasharray:5 3}
.real-mark{stroke:var(--real);stroke-width:3}.made-mark{stroke:var(--made);stroke-width:3}
circle.real,.swatch.real{fill:var(--real)}circle.made{fill:var(--made)}circle.null{fill:var(--null)}
.span{stroke-width:5;stroke-linecap:round;stroke-opacity:.4}
.span.real{stroke:var(--real)}.span.made{stroke:var(--made)}.span.null{stroke:var(--null)}
.swatch{display:inline-block;width:22px;height:12px;margin:0 6px 0 14px;vertical-align:baseline}
.swatch:first-child{margin-left:0}
.swatch.real{background:var(--real);opacity:.45}.swatch.made{border:2px dashed var(--made)}
.nears{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:16px}
.near .two{display:grid;grid-template-columns:1fr 1fr;gap:4px}
.near.copy{outline:3px solid var(--bad);outline-offset:4px;border-radius:4px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:600;white-space:nowrap}
tbody th{font-weight:600;min-width:9.5em}
td{min-width:4.5em}td:last-child{min-width:6em}
details{margin:28px 0}summary{cursor:pointer;font-weight:600}
dt{font-weight:600;margin-top:8px}dd{margin:0;max-width:76ch}
footer{margin-top:36px;border-top:1px solid var(--line);padding-top:10px;font-size:.9rem}
@media(max-width:720px){.verdict{grid-template-columns:1fr}.sides{grid-template-columns:1fr;gap:8px}
.eyes{grid-template-columns:repeat(2,1fr)}.charts{grid-template-columns:repeat(2,1fr);gap:18px 14px}h1{font-size:1.45rem}
.chart text{font-size:15px}.chart.wide text,.chart.wide .tick{font-size:17px}}
@media print{body{background:#fff}.verdict,figure,table{break-inside:avoid}}
"""
