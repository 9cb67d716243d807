//! What is in a module: the names in a PTX text.

/// The parts of a module image that the simulator looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Names of the entry functions.
    pub entries: Vec<String>,
    /// Global variables: name and size in bytes.
    pub globals: Vec<(String, u64)>,
}

impl Image {
    /// Reads a PTX text. Any other text has neither entries nor globals.
    pub fn parse(text: &str) -> Self {
        let code: String =
            text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        let words: Vec<&str> = code.split(|c: char| c.is_whitespace() || ",;(){}=".contains(c)).collect();
        let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let mut image = Self::default();
        for (at, word) in words.iter().enumerate() {
            match *word {
                ".entry" => image.entries.extend(words.get(at + 1).map(|name| (*name).to_owned())),
                ".global" => image.globals.extend(global(&words[at + 1..])),
                _ => {}
            }
        }
        image
    }
}

/// `[.align N] .TYPE NAME[COUNT]` after `.global`.
fn global(mut words: &[&str]) -> Option<(String, u64)> {
    let mut element_bytes = None;
    while let Some((word, rest)) = words.split_first() {
        words = rest;
        match *word {
            ".align" => words = words.get(1..)?,
            // `.global` is also part of instructions such as `ld.global.u32`, but never a word of its own there.
            kind if kind.starts_with('.') => element_bytes = type_bytes(kind).or(element_bytes),
            name => {
                let (name, count) = name.split_once('[').unwrap_or((name, "1]"));
                if name.is_empty() {
                    return None;
                }
                let count: u64 = count.trim_end_matches(']').parse().ok()?;
                return Some((name.to_owned(), element_bytes?.checked_mul(count)?));
            }
        }
    }
    None
}

fn type_bytes(kind: &str) -> Option<u64> {
    let bits: u64 = kind.trim_start_matches(|c: char| c == '.' || c.is_ascii_alphabetic()).parse().ok()?;
    matches!(bits, 8 | 16 | 32 | 64 | 128).then_some(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_globals_of_a_ptx_text_are_found() {
        let text = "
            .version 8.0
            .target sm_70 // .entry not_this
            .address_size 64
            .visible .global .align 4 .b8 table[1024];
            .global .u64 counter = 5;
            .visible .entry emuv_fill(
                .param .u64 emuv_fill_param_0
            ) { ld.global.u32 %r1, [%rd1]; ret; }
            .entry other() { ret; }
        ";
        let image = Image::parse(text);
        assert_eq!(image.entries, ["emuv_fill", "other"]);
        assert_eq!(image.globals, [("table".to_owned(), 1024), ("counter".to_owned(), 8)]);
    }

    #[test]
    fn a_text_that_is_no_ptx_has_nothing() {
        assert_eq!(Image::parse("hello world"), Image::default());
        assert_eq!(Image::parse(".entry"), Image::default());
        assert_eq!(Image::parse(".global .align"), Image::default());
        assert_eq!(Image::parse(".global .u32 [4];"), Image::default());
    }
}
