//! Charts as inline SVG. The drawing is stretched to whatever width there is, so it holds no text: that is HTML around it.

use std::fmt::Write as _;

use crate::markup::escaped;

/// The drawing's own units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 100.0;

/// What a chart shows over time.
#[derive(Debug)]
pub struct Chart<'c> {
    /// What it is, for those who do not see it.
    pub title: &'c str,
    /// The end of the axis of time, in seconds.
    pub seconds: f64,
    /// The upper end of the other axis, and what it is called.
    pub most: f64,
    pub most_words: String,
    /// Its lower end; 0 or below.
    pub least: f64,
    pub least_words: String,
    /// Places on the axis of time.
    pub marks: Vec<f64>,
    body: String,
}

/// A stretch of time with a value, drawn as a column from `from` to `to`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// Lower end.
    pub from: f64,
    /// Upper end.
    pub to: f64,
}

impl<'c> Chart<'c> {
    /// An empty one.
    pub fn new(title: &'c str, seconds: f64, least: (f64, String), most: (f64, String)) -> Self {
        let (least, least_words) = least;
        let (most, most_words) = most;
        let most = if most > least { most } else { least + 1.0 };
        Self {
            title,
            seconds: seconds.max(1e-6),
            most,
            most_words,
            least,
            least_words,
            marks: Vec::new(),
            body: String::new(),
        }
    }

    fn x(&self, seconds: f64) -> f64 {
        (seconds / self.seconds * WIDTH).clamp(0.0, WIDTH)
    }

    fn y(&self, value: f64) -> f64 {
        ((self.most - value) / (self.most - self.least) * HEIGHT).clamp(0.0, HEIGHT)
    }

    /// Columns of one kind, side by side in order of time.
    pub fn columns(&mut self, class: &str, columns: &[Column]) {
        let mut path = String::new();
        for column in columns.iter().filter(|column| column.to != column.from) {
            // A moment is seen as well.
            let (start, mut end) = (self.x(column.start), self.x(column.end));
            end = end.max(start + 0.8);
            let (top, bottom) = (self.y(column.to.max(column.from)), self.y(column.to.min(column.from)));
            // Writing to a string cannot fail.
            let _ = write!(path, "M{start:.1} {bottom:.2}V{top:.2}H{end:.1}V{bottom:.2}z");
        }
        if !path.is_empty() {
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// A line that holds each value until the next one.
    pub fn steps(&mut self, class: &str, values: &[(f64, f64)]) {
        let Some((first, value)) = values.first() else { return };
        let mut path = format!("M{:.1} {:.2}", self.x(*first), self.y(*value));
        for (seconds, value) in &values[1..] {
            let _ = write!(path, "H{:.1}V{:.2}", self.x(*seconds), self.y(*value));
        }
        let _ = writeln!(self.body, "<path class=\"line {class}\" d=\"{path}H{WIDTH}\"/>");
    }

    /// A level that matters, over all time.
    pub fn level(&mut self, class: &str, value: f64) {
        let y = self.y(value);
        let _ = writeln!(self.body, "<path class=\"line {class}\" d=\"M0 {y:.2}H{WIDTH}\"/>");
    }

    /// The chart, with a name for each class that is drawn.
    pub fn html(&self, legend: &[(&str, &str)]) -> String {
        let zero = self.y(0.0);
        let mut html = String::from("<figure class=\"chart\">\n<div class=\"axes\">\n<div class=\"y\">");
        let _ = write!(html, "<span>{}</span>", escaped(&self.most_words));
        if self.least < 0.0 {
            let _ = write!(html, "<span style=\"top:{zero:.1}%\" class=\"zero\">0</span>");
        }
        let _ = write!(
            html,
            "<span>{}</span></div>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\">\n<title>{}</title>\n",
            escaped(&self.least_words),
            escaped(self.title)
        );
        for quarter in 1..4 {
            let x = WIDTH / 4.0 * f64::from(quarter);
            let _ = write!(html, "<path class=\"line grid\" d=\"M{x} 0V{HEIGHT}\"/>");
        }
        html.push('\n');
        html.push_str(&self.body);
        let _ = writeln!(html, "<path class=\"line axis\" d=\"M0 {zero:.2}H{WIDTH}\"/>");
        for mark in &self.marks {
            let _ = write!(html, "<path class=\"line mark\" d=\"M{:.1} 0V{HEIGHT}\"/>", self.x(*mark));
        }
        let ticks: Vec<String> = (0..=4)
            .map(|quarter| format!("<span>{}</span>", duration(self.seconds / 4.0 * f64::from(quarter))))
            .collect();
        let _ = writeln!(html, "</svg>\n<div class=\"x\">{}</div>\n</div>", ticks.concat());
        let names: Vec<String> = legend
            .iter()
            .map(|(class, name)| format!("<span><i class=\"{class}\"></i>{}</span>", escaped(name)))
            .collect();
        let _ = writeln!(html, "<figcaption>{}</figcaption>\n</figure>", names.concat());
        html
    }
}

/// Parts of the time that rates are drawn for: finer than that it is single moves that are seen.
const PARTS: u32 = 160;

/// Amounts that fell in spans of time (seconds, from and to), as rates in equal parts of all time up to `seconds`.
pub fn rates(spans: &[(f64, f64)], amounts: impl Iterator<Item = f64>, seconds: f64) -> Vec<f64> {
    let part = seconds.max(1e-6) / f64::from(PARTS);
    let mut rates = vec![0.0; PARTS as usize];
    for ((start, end), amount) in spans.iter().zip(amounts) {
        let each = amount / (end - start);
        for (rate, number) in rates.iter_mut().zip(0..PARTS) {
            let from = part * f64::from(number);
            let overlap = (end.min(from + part) - start.max(from)).max(0.0);
            *rate += each * overlap / part;
        }
    }
    rates
}

/// Where the parts of [`rates`] begin and end, in seconds.
pub fn parts(seconds: f64) -> impl Iterator<Item = (f64, f64)> {
    let part = seconds.max(1e-6) / f64::from(PARTS);
    (0..PARTS).map(move |number| (part * f64::from(number), part * f64::from(number + 1)))
}

/// A time as people say it.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0".to_owned(),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart<'static> {
        Chart::new("a <title>", 10.0, (-5.0, "-5".into()), (5.0, "5 & more".into()))
    }

    #[test]
    fn values_lie_where_the_axes_say() {
        let mut chart = chart();
        chart.columns("a", &[Column { start: 5.0, end: 7.5, from: 0.0, to: 5.0 }]);
        chart.steps("b", &[(0.0, -5.0), (5.0, 0.0), (20.0, 99.0)]);
        chart.marks.push(2.5);
        let html = chart.html(&[("a", "A & B")]);
        assert!(html.contains("<path class=\"a\" d=\"M500.0 50.00V0.00H750.0V50.00z\"/>"), "{html}");
        assert!(html.contains("M0.0 100.00H500.0V50.00H1000.0V0.00H1000"), "{html}");
        assert!(html.contains("class=\"line mark\" d=\"M250.0 0V100\""), "{html}");
        assert!(html.contains("<title>a &lt;title&gt;</title>") && html.contains("A &amp; B"), "{html}");
    }

    #[test]
    fn a_chart_of_nothing_is_one_all_the_same() {
        let mut chart = Chart::new("", 0.0, (0.0, String::new()), (0.0, String::new()));
        chart.steps("a", &[]);
        chart.columns("a", &[Column { start: 0.0, end: 0.0, from: 0.0, to: 0.0 }]);
        assert!(!chart.html(&[]).contains("NaN"));
    }

    #[test]
    fn rates_keep_the_amounts() {
        let spans = [(0.0, 0.3), (5.0, 5.000_001), (7.0, 10.0)];
        let rates = rates(&spans, [30.0, 5.0, 300.0].into_iter(), 10.0);
        let sum: f64 = rates.iter().zip(parts(10.0)).map(|(rate, (start, end))| rate * (end - start)).sum();
        assert!((sum - 335.0).abs() < 1e-6, "{sum}");
        assert!((rates[PARTS as usize - 1] - 100.0).abs() < 1e-6 && rates[PARTS as usize / 4].abs() < 1e-9);
    }

    #[test]
    fn times_read_well() {
        let words: Vec<String> = [0.0, 0.0034, 0.25, 7.26, 62.0, 600.0, 9000.0].map(duration).to_vec();
        assert_eq!(words, ["0", "3.4 ms", "250 ms", "7.3 s", "62 s", "10 min", "2.5 h"]);
    }
}
