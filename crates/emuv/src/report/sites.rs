//! Where an allocation was made, on the page: the line that is most likely the program's own, and all of them to be unfolded.

use std::fmt::Write as _;

use emuv_state::report::{NativeFrameReport, PythonFrameReport, SiteReport};

use crate::markup::escaped;

/// Folders of what is installed: frameworks, and Python itself.
const INSTALLED: [&str; 3] = ["/site-packages/", "/dist-packages/", "/lib/python3"];

/// The last parts of a path: enough to know it by.
const PARTS: usize = 2;

/// A line, and what it unfolds to.
pub fn place(site: &SiteReport) -> String {
    let Some(first) = headline(site) else { return String::new() };
    let mut out = format!("<details class=\"site\"><summary>{}</summary>\n<ol>\n", escaped(&first));
    let python = site.python.iter().map(|frame| in_python(frame, &frame.file));
    let native = site.native.iter().map(|frame| in_native_code(frame, &frame.library));
    for line in python.chain(native) {
        let _ = writeln!(out, "<li><code>{}</code></li>", escaped(&line));
    }
    out.push_str("</ol>\n</details>");
    out
}

/// The innermost line of the program's own, or else the innermost of all.
pub(super) fn headline(site: &SiteReport) -> Option<String> {
    let own = site.python.iter().find(|frame| is_own(&frame.file)).or(site.python.first());
    if let Some(frame) = own {
        return Some(in_python(frame, end(&frame.file)));
    }
    site.native.first().map(|frame| in_native_code(frame, end(&frame.library)))
}

fn is_own(file: &str) -> bool {
    !file.starts_with('<') && !INSTALLED.iter().any(|folder| file.contains(folder))
}

fn end(path: &str) -> &str {
    path.rmatch_indices('/').nth(PARTS - 1).map_or(path, |(at, _)| path.get(at + 1..).unwrap_or(path))
}

fn in_python(frame: &PythonFrameReport, file: &str) -> String {
    let line = frame.line.map_or_else(String::new, |line| format!(":{line}"));
    format!("{file}{line} in {}", frame.function)
}

fn in_native_code(frame: &NativeFrameReport, library: &str) -> String {
    let symbol = frame.symbol.as_ref().map_or_else(String::new, |symbol| format!(" in {symbol}"));
    format!("{library}+{}{symbol}", frame.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python(file: &str, line: Option<u32>) -> PythonFrameReport {
        PythonFrameReport { file: file.into(), line, function: "f".into() }
    }

    #[test]
    fn the_programs_own_line_comes_first_and_all_can_be_seen() {
        let native =
            NativeFrameReport { library: "/opt/lib/a.so".into(), offset: "0x1f".into(), symbol: Some("go".into()) };
        let mut site = SiteReport {
            python: vec![
                python("<frozen runpy>", None),
                python("/usr/lib/python3/dist-packages/torch/nn.py", Some(4)),
                python("/home/me/work/<train>.py", Some(9)),
            ],
            native: vec![native],
        };
        let html = place(&site);
        assert!(html.starts_with("<details class=\"site\"><summary>work/&lt;train&gt;.py:9 in f</summary>"), "{html}");
        assert_eq!(html.matches("<li>").count(), 4);
        site.python.pop();
        assert_eq!(headline(&site).unwrap(), "<frozen runpy> in f");
        site.python.clear();
        assert_eq!(headline(&site).unwrap(), "lib/a.so+0x1f in go");
        site.native.clear();
        assert_eq!(place(&site), "");
    }
}
