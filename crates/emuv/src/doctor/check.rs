//! One finding of the doctor, and the whole of them for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// emuV works, but less well than it could.
    Warn,
    /// emuV does not work like this.
    Fail,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable name for programs.
    pub id: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; `None` where nothing is to be done.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self { id, status: Status::Ok, found: found.into(), advice: None }
    }

    /// It works, but.
    pub fn warn(id: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { id, status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    /// It does not work.
    pub fn fail(id: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { id, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// The PCIe link: what the GPU says of it, and what it does. `None` is "unknown".
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Link {
    /// PCIe generation now (an idle GPU may lower it).
    pub generation: Option<u32>,
    /// The highest generation that GPU and host have in common.
    pub generation_max: Option<u32>,
    /// Lanes now.
    pub width: Option<u32>,
    /// Lanes at most.
    pub width_max: Option<u32>,
    /// Host to device, 10^9 bytes a second.
    pub h2d_gbps: Option<f64>,
    /// Device to host, 10^9 bytes a second.
    pub d2h_gbps: Option<f64>,
    /// Both directions at once, their sum, 10^9 bytes a second.
    pub both_gbps: Option<f64>,
}

/// Everything found.
#[derive(Debug, Serialize)]
pub struct Findings {
    schema: u32,
    /// On the simulated GPU: nothing here says anything about hardware.
    pub simulated: bool,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// The link of the GPU that was tested; `None` without one.
    pub link: Option<Link>,
}

impl Findings {
    /// Nothing found yet.
    pub fn new(simulated: bool) -> Self {
        Self { schema: 1, simulated, checks: Vec::new(), link: None }
    }

    /// Whether any check failed.
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.status == Status::Fail)
    }

    /// Writes them as one JSON document.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    /// Writes them for a person.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        if self.simulated {
            writeln!(out, "Simulated GPU: this checks emuV and the host, no graphics card.\n")?;
        }
        for check in &self.checks {
            writeln!(out, "{:<5} {:<14} {}", check.status.word(), check.id, check.found)?;
            if let Some(advice) = &check.advice {
                writeln!(out, "{:20} -> {advice}", "")?;
            }
        }
        let count = |status| self.checks.iter().filter(|check| check.status == status).count();
        let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
        writeln!(out, "\n{} checks: {failures} failed, {warnings} with a warning", self.checks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let mut findings = Findings::new(false);
        findings.checks.push(Check::ok("gpu", "1 GPU"));
        findings.checks.push(Check::warn("link", "PCIe 3 x4", "use another slot"));
        findings
    }

    #[test]
    fn a_warning_is_no_failure() {
        let mut findings = findings();
        assert!(!findings.failed());
        findings.checks.push(Check::fail("driver", "none", "install one"));
        assert!(findings.failed());
    }

    #[test]
    fn text_has_one_line_a_check_and_advice_below_it() {
        let mut text = Vec::new();
        findings().write_text(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("ok    gpu            1 GPU\n"), "{text}");
        assert!(text.contains("-> use another slot\n"), "{text}");
        assert!(text.ends_with("2 checks: 0 failed, 1 with a warning\n"), "{text}");
    }

    #[test]
    fn json_has_the_promised_shape_and_unknown_is_null() {
        let mut findings = findings();
        findings.link = Some(Link { h2d_gbps: Some(55.5), ..Link::default() });
        let mut text = Vec::new();
        findings.write_json(&mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["simulated"], false);
        assert_eq!(json["checks"][1]["status"], "warn");
        assert_eq!(json["checks"][0]["advice"], serde_json::Value::Null);
        assert_eq!(json["link"]["h2d_gbps"], 55.5);
        assert_eq!(json["link"]["width"], serde_json::Value::Null);
    }
}
