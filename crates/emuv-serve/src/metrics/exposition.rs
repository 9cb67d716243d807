//! The text that Prometheus reads, in its two forms: its own (0.0.4) and OpenMetrics (1.0).
//!
//! They differ in how a counter's family is named, in units, and in the end mark. Which one is wanted is said by `Accept`.

use std::fmt::Write;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://prometheus.io/docs/instrumenting/exposition_formats>
    Prometheus,
    /// <https://github.com/OpenObservability/OpenMetrics>
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` prefers; Prometheus's own where it says nothing of either.
    pub fn wanted(accept: &str) -> Self {
        // In thousandths. Parameters other than q (a version, how to escape) do not change the choice.
        let quality = |range: &str| {
            let q = range.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("q="));
            let q = q.map_or(Some(1.0), |q| q.trim().parse::<f64>().ok());
            q.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0)
        };
        let best = |kind: &str| {
            let ranges = accept.split(',').filter(|range| {
                let name = range.split(';').next().unwrap_or_default();
                name.trim().eq_ignore_ascii_case(kind)
            });
            ranges.map(quality).fold(0.0, f64::max)
        };
        let open = best("application/openmetrics-text");
        if open > 0.0 && open >= best("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The type of the answer.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Goes up; its samples end in `_total`.
    Counter,
    /// Is always 1; what it says is in its labels. Its samples end in `_info`.
    Info,
}

/// Samples of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name without `_total` or `_info`. Ends in the unit, if it has one.
    pub name: &'static str,
    /// What it counts.
    pub kind: Kind,
    /// E.g. `bytes`.
    pub unit: Option<&'static str>,
    /// What it is, without a full stop.
    pub help: &'static str,
}

impl Family {
    /// The name of its samples.
    pub fn sample_name(&self) -> String {
        let suffix = match self.kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        format!("{}{suffix}", self.name)
    }
}

/// A value that is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A whole number: bytes, launches.
    Whole(u64),
    /// Any other: seconds, ratios.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// Labels as they stand behind a name, with the braces.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(String);

impl Labels {
    /// Writes them. Names must be valid; values may be anything.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (number, (name, value)) in labels.iter().enumerate() {
            text.push(if number == 0 { '{' } else { ',' });
            text.push_str(name);
            text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        Self(text)
    }
}

/// Writes an answer.
#[derive(Debug)]
pub struct Writer {
    format: Format,
    text: String,
}

impl Writer {
    /// An empty answer.
    pub fn new(format: Format, expected_bytes: usize) -> Self {
        Self { format, text: String::with_capacity(expected_bytes) }
    }

    /// Writes a family; what has no known value is left out, and so is a family without any.
    pub fn family<'l>(&mut self, family: &Family, samples: impl Iterator<Item = (&'l Labels, Option<Value>)>) {
        let mut samples = samples.filter_map(|(labels, value)| Some((labels, value?))).peekable();
        if samples.peek().is_none() {
            return;
        }
        let sample_name = family.sample_name();
        let (name, kind) = match (self.format, family.kind) {
            (Format::OpenMetrics, Kind::Info) => (family.name, "info"),
            (Format::OpenMetrics, Kind::Counter) => (family.name, "counter"),
            (Format::Prometheus, Kind::Counter) => (sample_name.as_str(), "counter"),
            (Format::Prometheus, Kind::Info) => (sample_name.as_str(), "gauge"),
            (_, Kind::Gauge) => (family.name, "gauge"),
        };
        let text = &mut self.text;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {}", family.help);
        let _ = writeln!(text, "# TYPE {name} {kind}");
        if let (Format::OpenMetrics, Some(unit)) = (self.format, family.unit) {
            let _ = writeln!(text, "# UNIT {name} {unit}");
        }
        for (labels, value) in samples {
            text.push_str(&sample_name);
            text.push_str(&labels.0);
            let _ = match value {
                Value::Whole(value) => writeln!(text, " {value}"),
                Value::Real(value) if value.is_finite() => writeln!(text, " {value}"),
                Value::Real(value) if value.is_nan() => writeln!(text, " NaN"),
                Value::Real(value) => writeln!(text, " {}Inf", if value > 0.0 { '+' } else { '-' }),
            };
        }
    }

    /// The whole answer.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVED: Family =
        Family { name: "emuv_moved_bytes", kind: Kind::Counter, unit: Some("bytes"), help: "What was moved" };

    fn written(format: Format, family: &Family, labels: &[(&str, &str)], value: Value) -> String {
        let labels = Labels::new(labels);
        let mut writer = Writer::new(format, 0);
        writer.family(family, [(&labels, Some(value)), (&labels, None)].into_iter());
        writer.finish()
    }

    #[test]
    fn a_counter_in_both_forms() {
        assert_eq!(
            written(Format::OpenMetrics, &MOVED, &[("gpu", "GPU-1"), ("pid", "7")], 12_u64.into()),
            "# HELP emuv_moved_bytes What was moved\n# TYPE emuv_moved_bytes counter\n# UNIT emuv_moved_bytes bytes\n\
             emuv_moved_bytes_total{gpu=\"GPU-1\",pid=\"7\"} 12\n# EOF\n"
        );
        assert_eq!(
            written(Format::Prometheus, &MOVED, &[], 0.5.into()),
            "# HELP emuv_moved_bytes_total What was moved\n# TYPE emuv_moved_bytes_total counter\n\
             emuv_moved_bytes_total 0.5\n"
        );
    }

    #[test]
    fn a_hostile_label_stays_a_label() {
        let text = written(Format::Prometheus, &MOVED, &[("program", "a\"} 1\nevil{x=\"\\")], 1_u64.into());
        assert_eq!(text.lines().last(), Some(r#"emuv_moved_bytes_total{program="a\"} 1\nevil{x=\"\\"} 1"#));
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let labels = Labels::new(&[]);
        let mut writer = Writer::new(Format::OpenMetrics, 0);
        writer.family(&MOVED, [(&labels, None)].into_iter());
        assert_eq!(writer.finish(), "# EOF\n");
    }

    #[test]
    fn the_form_is_the_one_that_is_asked_for() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2";
        for (accept, wanted) in [
            (prometheus_2, Format::OpenMetrics),
            (prometheus_3, Format::OpenMetrics),
            ("Application/OpenMetrics-Text", Format::OpenMetrics),
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html,text/plain", Format::Prometheus),
            ("text/plain, application/openmetrics-text; q=0.5", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=lots", Format::Prometheus),
        ] {
            assert_eq!(Format::wanted(accept), wanted, "{accept}");
        }
    }
}
