//! The dashboard: one page with all that it needs in it.
//!
//! Scripts and styles run only with the mark that each answer makes anew; what a program is called can be nothing but text.

use axum::http::HeaderValue;

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const CODE: &str = concat!(
    include_str!("page/units.js"),
    include_str!("page/chart.js"),
    include_str!("page/table.js"),
    include_str!("page/page.js"),
);

/// The page, and what the browser may do with it.
pub(crate) fn page(nonce: &str, admin: bool, version: &str) -> (String, HeaderValue) {
    let mut text = String::with_capacity(HTML.len() + CSS.len() + CODE.len() + 256);
    let mut rest = HTML;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        text.push_str(before);
        text.push_str(match name {
            "nonce" => nonce,
            "admin" if admin => "true",
            "admin" => "false",
            "version" => version,
            "css" => CSS,
            "js" => CODE,
            _ => "",
        });
        rest = after;
    }
    text.push_str(rest);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    (text, policy)
}

/// A mark that nobody can guess.
pub(crate) fn nonce() -> String {
    let mut bytes = [0; 16];
    // Without random bytes the mark is empty, which no browser accepts: nothing runs.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(16) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_it_and_nothing_comes_from_elsewhere() {
        let (text, policy) = page("abc123", true, "1.2.3");
        assert!(!text.contains("{{") && text.contains("data-admin=\"true\""));
        assert_eq!(text.matches("nonce=\"abc123\"").count(), 2);
        assert!(policy.to_str().unwrap().contains("script-src 'nonce-abc123';"));
        // The one address is the name of SVG's namespace.
        let addresses = text.matches("://").count();
        assert_eq!(addresses, text.matches("http://www.w3.org/2000/svg").count());
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=", " onclick"]
        {
            assert!(!text.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn each_answer_has_a_mark_of_its_own() {
        assert_ne!(nonce(), nonce());
        assert_eq!(nonce().len(), 32);
    }
}
