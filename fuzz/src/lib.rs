//! What the fuzz targets share.

/// Whether a message is one line, apart from line ends that it quotes from what was given.
pub fn is_one_line(message: &str, given: &[&str]) -> bool {
    !message.is_empty() && (!message.contains('\n') || given.iter().any(|text| text.contains('\n')))
}
