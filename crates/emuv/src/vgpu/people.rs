//! Users and groups by name or number.

use std::fs;

/// The number of a user.
///
/// # Errors
/// One line.
pub fn uid(text: &str) -> Result<u32, String> {
    number(text, "/etc/passwd", "user", "id -u")
}

/// The number of a group.
///
/// # Errors
/// One line.
pub fn gid(text: &str) -> Result<u32, String> {
    number(text, "/etc/group", "group", "getent group")
}

fn number(text: &str, file: &str, what: &str, ask: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let list = fs::read_to_string(file).unwrap_or_default();
    // Others, of a directory service, are not in the file; their numbers can be given.
    find(&list, text).ok_or_else(|| format!("there is no {what} '{text}' in {file}; give the number ({ask} {text})"))
}

/// The third field of the line that begins with the name.
fn find(list: &str, name: &str) -> Option<u32> {
    let line = list.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_or_by_number() {
        assert_eq!(find("root:x:0:0::/:\nann:x:1000:1000::/:\n", "ann"), Some(1000));
        assert_eq!(find("ann:x:1000:", "an"), None);
        assert_eq!(uid("1234"), Ok(1234));
        assert_eq!(uid("root"), Ok(0));
        assert!(gid("no such group").unwrap_err().contains("/etc/group"));
    }
}
