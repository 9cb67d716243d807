//! Lines of `key=value`, in `[sections]` or without: the form of profile files and of definitions.

/// One line that says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'t> {
    /// `[name]`
    Section(&'t str),
    /// `key = value`
    Pair(&'t str, &'t str),
}

/// The lines of a text with their numbers from 1; empty ones and comments (`#`, `;`) are left out.
///
/// The item is an error where a line is neither; the words are for people.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, Result<Line<'_>, String>)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            return None;
        }
        Some((index + 1, read(line)))
    })
}

fn read(line: &str) -> Result<Line<'_>, String> {
    if let Some(rest) = line.strip_prefix('[') {
        let name = rest.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
        return name.map(Line::Section).ok_or_else(|| format!("'{line}' is no [section]"));
    }
    let (key, value) = line.split_once('=').ok_or_else(|| format!("'{line}' is neither [section] nor key=value"))?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() {
        return Err(format!("'{line}' has no key before '='"));
    }
    Ok(Line::Pair(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_pairs_and_nothing_else() {
        let text = "# comment\n[ A ]\nkey = a = b\n\n; more\nempty=\nrubbish\n[open\n=x\n";
        let found: Vec<_> = lines(text).collect();
        assert_eq!(
            found[..3],
            [(2, Ok(Line::Section("A"))), (3, Ok(Line::Pair("key", "a = b"))), (6, Ok(Line::Pair("empty", "")))]
        );
        assert!(found[3..].iter().all(|(_, line)| line.is_err()));
        assert_eq!(found[3..].iter().map(|(number, _)| *number).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
