//! Where in a program an allocation was made, and how that is written down: a line for each frame, the innermost first.

use std::fmt::Write as _;

/// Frames that are kept of each kind.
pub const MOST_PYTHON_FRAMES: usize = 16;
/// See there.
pub const MOST_NATIVE_FRAMES: usize = 10;

/// Bytes of a path or a name that are kept: of a path the last ones.
const MOST_NAME_BYTES: usize = 160;

/// Where in a program something was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// The Python functions that were running, the innermost first.
    pub python: Vec<PythonFrame>,
    /// The native ones outside the CUDA libraries.
    pub native: Vec<NativeFrame>,
}

/// A Python function that was running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonFrame {
    /// Its file, as Python names it.
    pub file: String,
    /// 0: not known.
    pub line: u32,
    /// Its name, with those of what it is defined in.
    pub function: String,
}

/// A place in native code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeFrame {
    /// The file that the code was loaded from.
    pub library: String,
    /// Where in it, as its symbol table counts.
    pub offset: u64,
}

/// Text of somebody else's, fit to stand in a line.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

fn end_of(text: &str) -> String {
    let mut start = text.len().saturating_sub(MOST_NAME_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    plain(text.get(start..).unwrap_or_default())
}

impl Site {
    /// As lines of at most so many bytes in all; frames that do not fit are left out, the outermost first.
    pub(super) fn write(&self, limit_bytes: usize) -> String {
        let python = self.python.iter().take(MOST_PYTHON_FRAMES).map(|frame| {
            let function = plain(crate::ledger::cut(&frame.function, MOST_NAME_BYTES));
            format!("P\t{}\t{}\t{function}\n", frame.line, end_of(&frame.file))
        });
        let native = self.native.iter().take(MOST_NATIVE_FRAMES);
        let native = native.map(|frame| format!("N\t{:x}\t{}\n", frame.offset, end_of(&frame.library)));
        // Of both kinds the innermost ones are worth most.
        let (python, native): (Vec<String>, Vec<String>) = (python.collect(), native.collect());
        let mut left = limit_bytes;
        let mut kept = [0, 0];
        for at in 0..python.len().max(native.len()) {
            for (lines, kept) in [&python, &native].into_iter().zip(&mut kept) {
                if let Some(line) = lines.get(at).filter(|line| *kept == at && line.len() <= left) {
                    left -= line.len();
                    *kept += 1;
                }
            }
        }
        let mut text = String::new();
        python.iter().take(kept[0]).chain(native.iter().take(kept[1])).for_each(|line| {
            let _ = text.write_str(line);
        });
        text
    }

    /// What was written, as far as it can be understood; `None` where nothing is known.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut site = Self::default();
        for line in text.lines() {
            let mut parts = line.split('\t');
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some("P"), Some(line), Some(file), Some(function)) if site.python.len() < MOST_PYTHON_FRAMES => {
                    let (file, function) = (plain(file), plain(function));
                    site.python.push(PythonFrame { file, line: line.parse().unwrap_or(0), function });
                }
                (Some("N"), Some(offset), Some(library), None) if site.native.len() < MOST_NATIVE_FRAMES => {
                    let Ok(offset) = u64::from_str_radix(offset, 16) else { continue };
                    site.native.push(NativeFrame { library: plain(library), offset });
                }
                _ => {}
            }
        }
        (site != Self::default()).then_some(site)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn site() -> Site {
        Site {
            python: vec![PythonFrame { file: "/home/é/train.py".into(), line: 12, function: "Model.forward".into() }],
            native: vec![NativeFrame { library: "/usr/lib/libfoo.so".into(), offset: 0x1234 }],
        }
    }

    #[test]
    fn what_is_written_is_read_and_the_outermost_frames_give_way() {
        assert_eq!(Site::read(&site().write(1000)), Some(site()));
        assert_eq!(Site::read(""), None);
        let mut deep = site();
        deep.python = vec![deep.python[0].clone(); 40];
        deep.native = vec![deep.native[0].clone(); 40];
        let read = Site::read(&deep.write(400)).unwrap();
        assert!(read.python.len() > 3 && read.native.len() > 3, "{read:?}");
        let read = Site::read(&deep.write(usize::MAX)).unwrap();
        assert_eq!((read.python.len(), read.native.len()), (MOST_PYTHON_FRAMES, MOST_NATIVE_FRAMES));
    }

    #[test]
    fn names_with_line_breaks_and_long_ones_do_no_harm() {
        let odd = Site {
            python: vec![PythonFrame {
                file: format!("{}/a\tb\nN\t1\tx", "é".repeat(300)),
                line: 0,
                function: "\n".into(),
            }],
            native: vec![],
        };
        let read = Site::read(&odd.write(1000)).unwrap();
        assert_eq!((read.python.len(), read.native.len()), (1, 0));
        assert!(read.python[0].file.ends_with("/a?b?N?1?x") && read.python[0].file.len() <= MOST_NAME_BYTES);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic_and_what_it_reads_it_would_write(text in "[PN\t\n0-9a-fé]{0,200}") {
            if let Some(site) = Site::read(&text) {
                prop_assert_eq!(Site::read(&site.write(usize::MAX)), Some(site));
            }
        }
    }
}
