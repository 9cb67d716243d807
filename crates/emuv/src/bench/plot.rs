//! The plot: for every workload and oversubscription, how much slower than in VRAM each way is, and where the
//! bound lies. Hand-written SVG whose colours follow the reader's light or dark setting.

use std::fmt::Write;

use super::rows::{Cell, Row};
use crate::markup::escaped;

const LEFT: f64 = 190.0;
const WIDTH: f64 = 520.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 116.0;
const LINE: f64 = 22.0;
const GAP: f64 = 10.0;

const STYLE: &str = "\
svg { background: #ffffff; color: #1b1f24; font: 13px system-ui, sans-serif; }
text { fill: currentColor; } .soft { fill: #6a737d; } .grid { stroke: #d8dee4; } .bound { stroke: currentColor; stroke-width: 2; }
.emuv { fill: #0969da; } .static { fill: none; stroke: #bc4c00; stroke-width: 2; } .offload { fill: none; stroke: #8250df; stroke-width: 2; }
.gap { stroke: #0969da; stroke-width: 4; opacity: .35; } .bad { fill: #cf222e; }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117; color: #e6edf3; } .soft { fill: #8b949e; } .grid { stroke: #30363d; }
.emuv { fill: #58a6ff; } .gap { stroke: #58a6ff; } .static { stroke: #f0883e; } .offload { stroke: #bc8cff; } .bad { fill: #ff7b72; }
}";

/// The plot of all rows that have a time.
pub fn plot(rows: &[Row], heading: &[String; 2]) -> String {
    let shown: Vec<&Row> = rows.iter().filter(|row| row.plain_seconds.is_some()).collect();
    let most = shown.iter().flat_map(|row| slowdowns(row)).fold(10.0_f64, f64::max);
    let decades = most.log10().ceil().max(1.0);
    let place = |ratio: f64| LEFT + WIDTH * (ratio.max(0.8).log10() - 0.8_f64.log10()) / (decades - 0.8_f64.log10());
    let mut body = String::new();
    let mut y = TOP;
    let mut last = "";
    for row in &shown {
        if row.workload != last {
            y += GAP;
            text(&mut body, 12.0, y + 5.0, "", row.workload);
            last = row.workload;
        }
        line(&mut body, row, y, &place);
        y += LINE;
    }
    let (width, height) = (LEFT + WIDTH + RIGHT, y + 20.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" width=\"{width}\" height=\"{height:.0}\" \
         role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}\n</style>\n",
        escaped(&heading[0])
    );
    text(&mut svg, 12.0, 24.0, "", &heading[0]);
    text(&mut svg, 12.0, 44.0, "soft", &heading[1]);
    legend(&mut svg);
    axis(&mut svg, decades, y, &place);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// Everything in a row that has a place on the axis.
fn slowdowns(row: &Row) -> Vec<f64> {
    let cells = [&row.emuv, &row.fixed, &row.offload].into_iter().flatten().filter_map(|cell| cell.ratio);
    cells.chain(bound_ratio(row)).collect()
}

fn bound_ratio(row: &Row) -> Option<f64> {
    row.bound.zip(row.plain_seconds).map(|(bound, plain)| bound.seconds / plain)
}

fn line(out: &mut String, row: &Row, y: f64, place: &impl Fn(f64) -> f64) {
    if let Some(at) = row.at {
        text(out, 130.0, y + 5.0, "soft", &format!("{at}x"));
    }
    let ratio = |cell: &Option<Cell>| cell.as_ref().and_then(|cell| cell.ratio).map(place);
    let bound = bound_ratio(row).map(place);
    // Writing to a string cannot fail.
    if let (Some(bound), Some(emuv)) = (bound, ratio(&row.emuv)) {
        let _ = writeln!(out, "<path class=\"gap\" d=\"M{bound:.1} {y:.1}H{emuv:.1}\"/>");
    }
    if let Some(x) = bound {
        let _ = writeln!(out, "<path class=\"bound\" d=\"M{x:.1} {:.1}v14\"/>", y - 7.0);
    }
    if let Some(x) = ratio(&row.fixed) {
        let _ = writeln!(out, "<circle class=\"static\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>");
    }
    if let Some(x) = ratio(&row.offload) {
        let _ = writeln!(out, "<path class=\"offload\" d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\"/>", y - 6.0);
    }
    if let Some(x) = ratio(&row.emuv) {
        let _ = writeln!(out, "<circle class=\"emuv\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>");
    }
    let end = LEFT + WIDTH + 14.0;
    match (row.same_bits, row.percent_of_bound) {
        (Some(false), _) => text(out, end, y + 5.0, "bad", "other bits"),
        (_, Some(percent)) => text(out, end, y + 5.0, "soft", &format!("{percent:.0} %")),
        _ => text(out, end, y + 5.0, "soft", "-"),
    }
}

fn legend(out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<circle class=\"emuv\" cx=\"20\" cy=\"66\" r=\"5\"/><circle class=\"static\" cx=\"100\" cy=\"66\" r=\"5\"/>\
         <path class=\"offload\" d=\"M190 60l6 6l-6 6l-6 -6z\"/><path class=\"bound\" d=\"M350 59v14\"/>"
    );
    for (x, words) in [(32.0, "emuV"), (112.0, "static"), (204.0, "framework offload"), (358.0, "bound")] {
        text(out, x, 71.0, "", words);
    }
    text(out, LEFT, 94.0, "soft", "time per iteration, all in VRAM = 1");
    text(out, LEFT + WIDTH + 14.0, 94.0, "soft", "of bound");
}

fn axis(out: &mut String, decades: f64, bottom: f64, place: &impl Fn(f64) -> f64) {
    let mut decade = 1.0;
    while decade <= 10_f64.powf(decades) * 1.001 {
        let x = place(decade);
        let _ = writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {:.1}V{bottom:.1}\"/>", TOP - 2.0);
        text(out, x - 4.0, TOP - 6.0, "soft", &format!("{decade}"));
        decade *= 10.0;
    }
}

fn text(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\"{class}>{}</text>", escaped(words));
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            plan::{Baseline, Ratio},
            rows::{
                rows,
                tests::{LINK, failed, ran},
            },
        },
        *,
    };

    #[test]
    fn every_way_has_its_mark_and_the_bound_its_line() {
        let samples = [
            ran(Baseline::Plain, None, 0.002, "a"),
            ran(Baseline::Emuv, Some(1.5), 0.025, "a"),
            ran(Baseline::Static, Some(1.5), 0.5, "a"),
        ];
        let svg =
            plot(&rows("decode-1", &samples, &[Ratio(1.5)], Some(&LINK)), &["GPU <1> & \"2\"".into(), "link".into()]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains("<title>GPU &lt;1&gt; &amp; &quot;2&quot;</title>"), "{svg}");
        assert!(svg.contains("80 %") && svg.contains("prefers-color-scheme: dark"), "{svg}");
        // One in the legend, one in the row.
        for mark in ["class=\"emuv\"", "class=\"static\"", "class=\"bound\""] {
            assert_eq!(svg.matches(mark).count(), 2, "{mark}: {svg}");
        }
        assert_eq!(svg.matches("class=\"offload\"").count(), 1, "{svg}");
    }

    #[test]
    fn rows_without_a_time_leave_no_mark() {
        let svg = plot(
            &rows("decode-1", &[failed(Baseline::Plain, None, "no")], &[Ratio(1.5)], None),
            &["x".into(), "y".into()],
        );
        assert!(!svg.contains("decode-1"), "{svg}");
    }
}
