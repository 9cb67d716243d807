//! Texts that others chose, made harmless for a terminal, a page or a log.

/// A text without anything that a terminal would obey or that changes how its neighbours are shown: control characters
/// (of which escape sequences are made), marks of writing direction, characters without a width. Each is shown as `?`.
pub fn harmless(text: &str) -> String {
    text.chars().map(|character| if is_harmless(character) { character } else { '?' }).collect()
}

fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(u32::from(character),
            // Formats and joiners (Unicode's Cf), separators of lines and paragraphs.
            0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2 | 0x180e | 0x200b..=0x200f
            | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0x110bd | 0x110cd | 0x13430..=0x1343f
            | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff
            // Variation selectors and what fills places without being seen.
            | 0x34f | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x2800 | 0x3164 | 0xfe00..=0xfe0f | 0xffa0)
}

/// The program's name out of a command line whose arguments are separated by blanks: the last part of its path.
pub(crate) fn program(command: &str) -> String {
    let first = command.split(' ').next().unwrap_or_default();
    first.rsplit('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_as_a_question_mark() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}31mc\r\n\t\x07"), "a?[2Jb?31mc????");
        assert_eq!(harmless("x\u{202e}gpj.exe\u{200b}\u{2066}"), "x?gpj.exe??");
        assert_eq!(harmless("train.py --größe 漢字 😀"), "train.py --größe 漢字 😀");
    }

    #[test]
    fn a_program_is_named_by_the_end_of_its_path() {
        for (command, name) in [("/usr/bin/python3 train.py", "python3"), ("prog", "prog"), ("", ""), ("/x/", "")] {
            assert_eq!(program(command), name);
        }
    }
}
