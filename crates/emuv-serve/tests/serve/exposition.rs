//! The metrics, read by a parser that takes nothing but what the two forms allow.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use emuv_serve::{Format, metrics_text, sample_names};

use crate::{figures, server::Server};

const OPEN: (&str, &str) = ("Accept", "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.4");

/// One sample: its name, its labels as they are meant, its value.
#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `name{a="b",...} value`
fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut characters = after.char_indices();
            rest = loop {
                match characters.next().unwrap() {
                    (at, '"') => break &after[at + 1..],
                    (_, '\\') => value.push(match characters.next().unwrap().1 {
                        'n' => '\n',
                        escaped @ ('"' | '\\') => escaped,
                        other => panic!("\\{other} in {line}"),
                    }),
                    (_, other) => value.push(other),
                }
            };
            assert!(labels.iter().all(|(known, _)| known != label), "{label} twice: {line}");
            labels.push((label.to_owned(), value));
            match rest.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => break rest = after,
                _ => panic!("{line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    assert!(!value.contains(' '), "{line}");
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

/// All samples, if the text is as it must be.
fn parse(text: &str, open: bool) -> Vec<Sample> {
    let text = match text.strip_suffix("# EOF\n") {
        Some(text) if open => text,
        None if !open => text,
        _ => panic!("an end mark is for OpenMetrics, and there it must be"),
    };
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let (mut samples, mut families, mut series) = (Vec::new(), HashSet::new(), HashSet::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        assert!(is_name(name) && name.starts_with("emuv_") && !help.is_empty() && !help.contains('\\'), "{line}");
        assert!(families.insert(name.to_owned()), "{name}: a family stands in one place");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        let wanted = match (open, kind) {
            (true, "counter") => format!("{name}_total"),
            (true, "info") => format!("{name}_info"),
            (true, "gauge") | (false, "gauge" | "counter") => name.to_owned(),
            _ => panic!("{kind}"),
        };
        assert_eq!(wanted.ends_with("_total"), kind == "counter", "{name}");
        if let Some(unit) = lines.next_if(|line| line.starts_with("# UNIT ")) {
            let unit = unit.strip_prefix(&format!("# UNIT {name} ")).unwrap();
            assert!(open && name.ends_with(&format!("_{unit}")), "{name}: the unit is the end of the name");
        }
        let before = samples.len();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let sample = sample(line);
            assert_eq!(sample.name, wanted);
            assert!(sample.value >= 0.0 || kind == "gauge", "{line}");
            let mut labels = sample.labels.clone();
            labels.sort();
            assert!(series.insert((sample.name.clone(), labels)), "twice: {line}");
            samples.push(sample);
        }
        assert!(samples.len() > before, "{name} is empty");
    }
    samples
}

#[test]
fn both_forms_say_the_same_of_any_machine() {
    for snapshot in [figures::machine(3, 4), figures::odd(), emuv_watch::Snapshot::default()] {
        let server = Server::of(snapshot);
        let plain = server.get("/metrics");
        let open = server.ask("GET", "/metrics", &[OPEN], "");
        assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
        let (plain, open) = (parse(&plain.body, false), parse(&open.body, true));
        assert_eq!(plain, open);
        let known = sample_names();
        assert!(open.iter().all(|sample| known.contains(&sample.name)));
    }
}

#[test]
fn figures_have_their_labels_and_base_units() {
    let samples = parse(&Server::of(figures::machine(2, 2)).get("/metrics").body, false);
    let find = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap_or_else(|| panic!("{name}"));
    let moved = find("emuv_process_in_bytes_total");
    assert_eq!(moved.value, 1_099_511_627_776.0);
    for (label, value) in [("slice", "ml-0"), ("pid", "1000"), ("program", "python3")] {
        assert_eq!(moved.label(label), Some(value));
    }
    assert!(moved.label("gpu").unwrap().starts_with("GPU-"));
    assert_eq!(find("emuv_process_held_seconds_total").value, 0.0025);
    assert_eq!(find("emuv_process_bound_ratio").value, 0.75);
    assert_eq!(find("emuv_slice_gpu_seconds_total").value, 1.5);
    assert_eq!(find("emuv_slice_cap_ratio").value, 0.5);
    assert_eq!(find("emuv_build_info").label("version"), Some("1.2.3"));
}

#[test]
fn what_is_unknown_is_not_there_and_what_has_one_name_is_told_apart() {
    let samples = parse(&Server::of(figures::odd()).get("/metrics").body, false);
    let all = |name: &str| samples.iter().filter(|sample| sample.name == name).collect::<Vec<_>>();
    assert!(all("emuv_slice_vram_used_bytes").is_empty() && all("emuv_process_launches_total").is_empty());
    let slices: Vec<_> = all("emuv_slice_enabled").iter().filter_map(|sample| sample.label("slice")).collect();
    assert_eq!(slices, ["/run/emuv/vgpu/ml-0", "/tmp/emuv-1000/vgpu/ml-0"]);
    let pids: Vec<_> = all("emuv_process_vram_bytes").iter().filter_map(|sample| sample.label("pid")).collect();
    assert_eq!(pids, ["7", "7#2", "7#3", "7#4"]);
    assert_eq!(all("emuv_process_vram_bytes")[0].label("program"), Some(figures::HOSTILE));
    assert_eq!(all("emuv_driver_answers")[0].value, 0.0);
    assert_eq!(all("emuv_problems").len(), 5);
}

#[test]
fn the_dashboard_for_grafana_asks_for_what_there_is() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/grafana-dashboard.json");
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let asked: HashSet<_> = words.filter(|word| word.starts_with("emuv_")).collect();
    assert!(asked.len() > 10, "{asked:?}");
    let known = sample_names();
    for name in asked {
        assert!(known.iter().any(|known| known == name), "{name}");
    }
}

/// `cargo test --release -p emuv-serve -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn how_long_a_scrape_takes() {
    for (slices, processes) in [(32, 6), (32, 200)] {
        let snapshot = figures::machine(slices, processes);
        let server = Server::of(snapshot.clone());
        let [scrape, text] = [
            median(|| server.get("/metrics").body.len()),
            median(|| metrics_text(&snapshot, Duration::ZERO, "1.2.3", Format::OpenMetrics).len()),
        ];
        println!("{slices} slices, {} processes: {scrape:?} a scrape, {text:?} of it for the text", slices * processes);
    }
}

/// How long it takes, of 21 times the one in the middle.
fn median(mut act: impl FnMut() -> usize) -> Duration {
    let time = |_| {
        let start = Instant::now();
        assert!(act() > 0);
        start.elapsed()
    };
    let mut times: Vec<_> = (0..21).map(time).collect();
    times.sort();
    times[10]
}
