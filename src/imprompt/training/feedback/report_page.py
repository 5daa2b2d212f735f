"""Style and script of a run's report."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1f2328; background: #f6f8fa; max-width: 1180px;
       margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 28px 0 8px; }
.written, .facts span { color: #59636e; font-size: 13px; }
.written { margin: 2px 0 18px; }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 18px; }
.facts div { background: #fff; border: 1px solid #d1d9e0; border-radius: 8px; padding: 10px 14px; }
.facts b { display: block; font-size: 19px; font-weight: 600; }
.note { background: #fff1e5; border: 1px solid #e0b48a; border-radius: 8px; padding: 10px 14px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; }
figure { margin: 0; background: #fff; border: 1px solid #d1d9e0; border-radius: 8px; padding: 6px; }
figure svg { display: block; width: 100%; height: auto; }
#sheets img { max-width: 100%; background: #fff; border: 1px solid #d1d9e0; border-radius: 8px; }
#sheets input { width: min(480px, 60vw); vertical-align: middle; }
details { margin-top: 14px; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; background: #fff; margin-top: 8px; }
td { border: 1px solid #d1d9e0; padding: 3px 10px; vertical-align: top; overflow-wrap: anywhere; }
"""

SLIDER = """
const sheets = document.querySelector("#sheets");
if (sheets) {
  const links = sheets.querySelectorAll("li a");
  sheets.querySelector("input").addEventListener("input", event => {
    const link = links[event.target.value];
    sheets.querySelector("img").src = link.getAttribute("href");
    sheets.querySelector("output").textContent = link.textContent;
  });
}
"""
