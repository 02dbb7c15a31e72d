"""The style sheet of the report: one column on a phone, a grid on a desk, light and dark.

Safe is a blue-green and unsafe an orange-red, which people with the common colour blindnesses tell
apart; besides the colour every verdict has a shape (round, diamond, square) and its word.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f1; --card: #ffffff; --ink: #1f2328; --soft: #646b76; --line: #e3e0d8;
  --spine: #37404d; --accent: #2f5fd0; --accent2: #9a6a00; --accent3: #7c4dbd; --then: #b9bec8;
  --safe: #0a7f64; --unsafe: #c8431f; --error: #7d8590;
  --safe-bg: #e3f3ee; --unsafe-bg: #fbe9e3; --error-bg: #eceef1; --shadow: 0 1px 2px #0000000d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7e5e0; --soft: #a0a7b2; --line: #31363f;
    --spine: #c5cbd6; --accent: #82a7ff; --accent2: #e0b252; --accent3: #c3a1f5; --then: #5b626e;
    --safe: #45c7a3; --unsafe: #ff8b65; --error: #97a0ac;
    --safe-bg: #18342d; --unsafe-bg: #3d231a; --error-bg: #2a2f37; --shadow: none; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main, header.top, footer { max-width: 1160px; margin: 0 auto; padding: 0 24px; }
header.top { padding-top: 44px; }
h1 { font-size: clamp(28px, 4.5vw, 40px); line-height: 1.15; margin: 0 0 6px;
  letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 24px; margin: 0 0 4px; letter-spacing: -.01em; }
h3 { font-size: 15px; margin: 0; font-weight: 650; }
h3.sub { margin: 26px 0 10px; }
p { margin: 0; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: 13px; }
.subtitle { color: var(--soft); font-size: 17px; }
.notice { border-left: 4px solid var(--unsafe); background: var(--unsafe-bg); padding: 10px 16px;
  border-radius: 0 8px 8px 0; margin: 20px 0 0; font-size: 14.5px; max-width: 86ch; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 20px 0 0; font-size: 14.5px; }
a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { margin: 52px 0 0; }
.lead { color: var(--soft); max-width: 78ch; margin-bottom: 16px; }
.gap { margin: 18px 0 8px; }
.missing { color: var(--soft); border: 1px dashed var(--line); border-radius: 10px;
  padding: 12px 16px; margin-top: 10px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 18px 20px; margin: 0; box-shadow: var(--shadow); }
.scroll { overflow-x: auto; }
footer { color: var(--soft); font-size: 13.5px; padding-top: 48px; padding-bottom: 40px; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .88em;
  }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 16px;
  margin: 28px 0 0; }
.tile .big { font-size: 42px; font-weight: 680; line-height: 1.25; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.tile .big small { font-size: 20px; font-weight: 500; letter-spacing: 0; }
.tile .of { font-size: 13.5px; color: var(--soft); }
.tile .was { color: var(--ink); margin-right: .4em; }
.track { position: relative; height: 6px; border-radius: 3px; background: var(--line);
  margin: 6px 7px 12px; }
.track .way { position: absolute; top: 0; height: 6px; background: var(--accent); opacity: .35; }
.dot { position: absolute; top: -4px; width: 14px; height: 14px; border-radius: 50%;
  margin-left: -7px; border: 3px solid var(--accent); background: var(--accent); }
.dot.then { background: var(--card); border-color: var(--then); }

table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.rates { width: 100%; min-width: 420px; }
.rates th, .rates td { padding: 9px 12px; text-align: right; border-top: 1px solid var(--line);
  vertical-align: baseline; }
.rates thead th { border-top: 0; font-size: 14px; color: var(--soft); font-weight: 600; }
.rates tbody th { text-align: left; font-weight: 600; padding-left: 0; }
.rates th small, .rates td small { display: block; font-weight: 400; }
.rates td small { white-space: nowrap; }
.rates td { font-size: 17px; }
.change.safe { color: var(--safe); font-weight: 650; }
.change.unsafe { color: var(--unsafe); font-weight: 650; }

.keys { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13.5px; margin: 4px 0; }
.key::before { content: ""; display: inline-block; width: 14px; height: 4px; border-radius: 2px;
  background: var(--k, var(--accent)); margin-right: 6px; vertical-align: middle; }
.c0 { --k: var(--accent); } .c1 { --k: var(--accent2); } .c2 { --k: var(--accent3); }
.c-safe { --k: var(--safe); } .c-unsafe { --k: var(--unsafe); }
.key.then { --k: var(--then); } .key.now { --k: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 16px;
  }
.chart { padding: 16px 14px 10px; display: flex; flex-direction: column;
  justify-content: space-between; }
.chart figcaption { padding: 0 6px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 6px; }
.grid { stroke: var(--line); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.tick { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.curve { fill: none; stroke: var(--k); stroke-width: 2.2; stroke-linejoin: round;
  stroke-linecap: round; }
.raw { fill: none; stroke: var(--k); stroke-width: 1; opacity: .3; }
.hover { fill: var(--k); opacity: 0; } .hover:hover { opacity: 1; }

.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 16px; }
.confusion { width: 100%; border-collapse: separate; border-spacing: 5px; margin-top: 8px;
  table-layout: fixed; }
.confusion th { font-size: 13px; font-weight: 600; color: var(--soft); padding: 4px; }
.confusion tbody th { text-align: right; width: 92px; } .confusion thead td { width: 92px; }
.confusion td[class] { text-align: center; border-radius: 8px; padding: 14px 4px; height: 92px;
  background: color-mix(in srgb, var(--k) var(--share), var(--card));
    border: 1px solid var(--line); }
.confusion td b { font-size: 22px; display: block; line-height: 1.2; }
.confusion td span { font-size: 13px; }
.confusion td small { display: block; color: inherit; font-size: 12px; line-height: 1.2;
  opacity: .8; }
.confusion .safe { --k: var(--safe); } .confusion .unsafe { --k: var(--unsafe); }
.confusion .error { --k: var(--error); }

.bycategory { display: grid; grid-template-columns: minmax(130px, 1fr) 2fr 2fr; gap: 12px 26px;
  align-items: center; margin-top: 10px; }
.bycategory.n1 { grid-template-columns: minmax(130px, 1fr) 4fr; }
.bycategory h3 { font-size: 13.5px; color: var(--soft); font-weight: 600; }
.bycategory .name { font-weight: 600; font-size: 15px; line-height: 1.25; }
.bars { position: relative; padding-right: 46px; }
.bars em { position: absolute; right: 0; top: 50%;
  transform: translateY(-50%); font-style: normal; font-size: 12px; color: var(--soft); }
.bar { display: flex; align-items: center; height: 13px; margin: 2px 0; background: var(--paper);
  border-radius: 3px; position: relative; }
.bar i { height: 100%; border-radius: 3px; background: var(--accent); }
.bar i.then { background: var(--then); }
.bar span { font-size: 11.5px; padding-left: 5px; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.points { margin-top: 10px; display: grid; grid-template-columns: auto 1fr auto; gap: 8px 14px;
  align-items: center; font-size: 14.5px; }
.points .stack { display: flex; height: 22px; border-radius: 6px; overflow: hidden;
  background: var(--paper); gap: 2px; }
.stack i { font-style: normal; font-size: 12px; line-height: 22px; text-align: center;
  overflow: hidden; color: var(--card); background: var(--k); font-weight: 600; }
.stack .safe { --k: var(--safe); } .stack .unsafe { --k: var(--unsafe); }
.stack .error { --k: var(--error); }

.mark { display: inline-block; width: 11px; height: 11px; flex: none; margin-right: 7px; }
.mark.safe { border-radius: 50%; background: var(--safe); }
.mark.unsafe { background: var(--unsafe); transform: rotate(45deg) scale(.88); }
.mark.error { border: 2px solid var(--error); }
.chip { display: inline-flex; align-items: center; font-size: 13px; padding: 1px 10px;
  border-radius: 99px; font-weight: 600; white-space: nowrap; }
.chip.safe { color: var(--safe); background: var(--safe-bg); }
.chip.unsafe { color: var(--unsafe); background: var(--unsafe-bg); }
.chip.error { color: var(--error); background: var(--error-bg); }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; color: var(--soft);
  margin: 0 0 14px; }
.legend span { display: inline-flex; align-items: center; }

.tree, .answer { margin-top: 18px; }
.treehead { display: flex; gap: 18px; align-items: center; margin-bottom: 10px; }
img { border-radius: 10px; border: 1px solid var(--line); height: auto; max-width: 100%;
  display: block; background: #fff; }
.treehead img { width: 112px; height: 112px; object-fit: cover; flex: none; }
.nopicture { width: 112px; min-height: 72px; flex: none; border: 1px dashed var(--line);
  border-radius: 10px;
  color: var(--soft); font-size: 12px; padding: 8px; display: grid; place-items: center;
    text-align: center; overflow-wrap: anywhere; }
.question { font-size: 18px; font-weight: 600; line-height: 1.4; white-space: pre-line; }
.facts { color: var(--soft); font-size: 13.5px; margin-top: 4px; }
.treedrawing { display: block; margin: 0 auto; max-width: 100%; min-width: 560px; height: auto; }
.spine { stroke: var(--spine); stroke-width: 5; stroke-linecap: round; }
.node { fill: var(--card); stroke: var(--spine); stroke-width: 2.5; }
.nodename { fill: var(--ink); font-size: 12.5px; font-weight: 700; }
.twig.safe { --k: var(--safe); } .twig.unsafe { --k: var(--unsafe); }
.twig.error { --k: var(--error); }
.twig .line { fill: none; stroke: var(--k); stroke-width: var(--w); opacity: var(--o);
  stroke-linecap: round; }
.twig .touch { fill: none; stroke: transparent; stroke-width: 13; pointer-events: stroke; }
.twig .leaf { fill: var(--k); stroke: var(--card); stroke-width: 1.5; }
.twig.error .leaf { fill: var(--card); stroke: var(--k); stroke-width: 2; }
.twig:hover .line { opacity: 1; stroke-width: calc(var(--w) + 1.6); }
.step { stroke: var(--card); stroke-width: 1; } .step.safe { fill: var(--safe); }
.step.unsafe { fill: var(--unsafe); } .step.error { fill: var(--error); }
.head { fill: var(--soft); font-size: 12px; text-anchor: middle; }
.count { fill: var(--soft); font-size: 11px; }

details > summary { cursor: pointer; }
.tree > details > summary { color: var(--accent); font-size: 15px; font-weight: 600;
  padding: 8px 0 2px; }
.reading { margin-top: 12px; }
.row { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 0 30px;
  position: relative; padding-bottom: 14px; }
.row::before { content: ""; position: absolute; left: 14px; top: 16px; bottom: -14px; width: 4px;
  background: var(--spine); opacity: .85; }
.row.end::before { display: none; }
.ref { position: relative; padding-left: 42px; min-height: 30px; font-size: 15px; }
.ref p { padding-top: 3px; white-space: pre-line; }
.num { position: absolute; left: 2px; top: 2px; width: 28px; height: 28px; border-radius: 50%;
  background: var(--card); border: 3px solid var(--spine); display: grid; place-items: center;
    font-size: 13px; }
.row.end .num { border-radius: 8px; background: var(--spine); color: var(--card); }
.twigs { list-style: none; margin: 0; padding: 0; }
.twigs li { position: relative; padding: 0 0 7px 0; }
.twigs li::before { content: ""; position: absolute; left: -18px; top: -8px; height: 26px;
  width: 18px;
  border: solid var(--then); border-width: 0 0 2px 2px; border-bottom-left-radius: 9px; }
.twigs li:first-child::before { top: 16px; left: -30px; width: 30px; height: 0;
  border-width: 0 0 2px 0; border-radius: 0; }
.twigs li:not(:last-child)::after { content: ""; position: absolute; left: -18px; top: 17px;
  bottom: 6px; border-left: 2px solid var(--then); }
.twigcard { border: 1px solid var(--line); border-left: 4px solid var(--k); border-radius: 8px;
  background: var(--card); }
.twigcard.safe { --k: var(--safe); } .twigcard.unsafe { --k: var(--unsafe); }
.twigcard.error { --k: var(--error); }
.twigcard > summary { display: flex; align-items: baseline; list-style: none; padding: 5px 12px;
  font-size: 14.5px; }
.twigcard > summary::-webkit-details-marker { display: none; }
.twigcard > summary .reply { flex: 1; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; }
.twigcard[open] > summary .reply { -webkit-line-clamp: none; font-weight: 600;
  white-space: pre-line; }
.twigcard > summary:hover { background: var(--paper); border-radius: 8px; }
:target > .twigcard { outline: 3px solid var(--accent); }
.times, .logp { color: var(--soft); font-size: 12.5px; padding-left: 10px;
  font-variant-numeric: tabular-nums; }
.twigcard > ol, .twigcard > p { margin-left: 14px; margin-right: 14px; }
.detail { color: var(--soft); font-size: 13.5px; margin-bottom: 8px; }
.steps { margin: 6px 0; padding: 0 0 0 22px; font-size: 14.5px; line-height: 1.45; }
.steps li { padding: 2px 0; } .steps li::marker { color: var(--soft); font-size: 12.5px; }
.steps .mark { width: 8px; height: 8px; margin-right: 8px; }

.answer { display: grid; grid-template-columns: 210px minmax(0, 1fr); gap: 8px 26px; }
.ask img { width: 100%; margin-bottom: 10px; } .ask .question { font-size: 16px; }
.ask .nopicture { width: 100%; margin-bottom: 10px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr));
  gap: 14px 28px; }
.said h3 { color: var(--soft); text-transform: capitalize; }
blockquote.safe { --k: var(--safe); } blockquote.unsafe { --k: var(--unsafe); }
blockquote { border-left: 4px solid var(--k, var(--error)); margin: 8px 0 0; padding: 10px 14px;
  background: var(--paper); border-radius: 6px; font-size: 15.5px;
  overflow-wrap: anywhere; white-space: pre-line; }
.settings { columns: 320px auto; column-gap: 40px; font-size: 14px; margin-top: 10px; }
.settings div { display: flex; justify-content: space-between; gap: 12px;
  border-bottom: 1px solid var(--line); padding: 3px 0; break-inside: avoid; }
.settings code:last-child { text-align: right; overflow-wrap: anywhere; }
.summary { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr));
  gap: 14px 28px; }
.summary dt { font-size: 13px; color: var(--soft); }
.summary dd { margin: 0; overflow-wrap: anywhere; }

@media (max-width: 760px) {
  main, header.top, footer { padding-left: 14px; padding-right: 14px; }
  header.top { padding-top: 26px; }
  section { margin-top: 40px; }
  .card { padding: 14px; border-radius: 12px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; } .tile .big { font-size: 32px; }
  .bycategory { grid-template-columns: 1fr 1fr; gap: 4px 16px; }
  .bycategory.n1 { grid-template-columns: 1fr; } .bycategory > div:first-child { display: none; }
  .bycategory .name { grid-column: 1 / -1; margin-top: 8px; } .bars { padding-right: 38px; }
  .rates { min-width: 0; } .rates th, .rates td { padding: 8px 5px; }
  .rates td { font-size: 15px; }
  .confusion tbody th, .confusion thead td { width: 62px; }
  .row { grid-template-columns: minmax(0, 1fr); } .twigs { padding: 8px 0 0 62px; }
  .twigs li::before { left: -20px; width: 20px; }
  .twigs li:first-child::before { left: -46px; width: 46px; }
  .twigs li:not(:last-child)::after { left: -20px; }
  .points { grid-template-columns: auto 1fr; } .points small { grid-column: 2; margin-top: -6px; }
  .answer { grid-template-columns: minmax(0, 1fr); }
  .ask { display: grid; grid-template-columns: 96px 1fr;
    column-gap: 14px; } .ask img, .ask .nopicture { grid-row: 1 / 3; margin: 0; width: 96px; }
  .treehead img { width: 84px; height: 84px; } .question { font-size: 16px; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } nav { display: none; } }
"""
