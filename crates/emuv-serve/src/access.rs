//! Who may do what: a token for changes, how often a wrong one may be tried, and which web pages may ask at all.
//!
//! Everybody who reaches the address may look. Changes need all of these:
//!
//! 1. The server was started for them, with a token.
//! 2. The request carries the token as `Authorization: Bearer`. There are no cookies, so no other web page can make a
//!    browser send it.
//! 3. If a browser says which page asks (`Origin`, `Sec-Fetch-Site`), it is this server's own.
//! 4. The address that asks has not given too many wrong tokens lately; the right one is not even looked at then.
//!
//! On a loopback address, a name in `Host` that is not this machine's own is refused: a web page whose name has been made
//! to lead to 127.0.0.1 could read everything otherwise.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::Read,
    net::{IpAddr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;

/// The fewest characters of a token: even at the full rate of tries, nobody guesses it.
const LEAST_TOKEN: usize = 16;
const MOST_TOKEN: u64 = 1024;

/// Others may read it, or anybody but the owner may write it.
const TOO_OPEN: u32 = 0o027;

/// Wrong tokens that an address may give at once.
const BURST: u32 = 5;
/// And then one in each of these.
const REFILL: Duration = Duration::from_secs(10);
/// Addresses that are remembered; the others share one account.
const MOST_PEERS: usize = 1024;

/// The token that allows changes.
pub struct Token(Vec<u8>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// Reads it: the one line of a file that nobody else may read or write.
    ///
    /// # Errors
    /// One line that starts with the file's name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let failed = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
        let file = File::open(path).map_err(|error| failed(&error))?;
        let mode = file.metadata().map_err(|error| failed(&error))?.mode();
        if mode & TOO_OPEN != 0 {
            return Err(failed(&format!(
                "others may read or change it (mode {:o}); chmod 600 makes it yours",
                mode & 0o777
            )));
        }
        let mut text = String::new();
        file.take(MOST_TOKEN + 1).read_to_string(&mut text).map_err(|error| failed(&error))?;
        Self::of(&text).map_err(|why| failed(&why))
    }

    /// The token that a text is.
    ///
    /// # Errors
    /// One line.
    pub fn of(text: &str) -> Result<Self, String> {
        let token = text.strip_suffix('\n').unwrap_or(text);
        if token.len() < LEAST_TOKEN || token.len() as u64 > MOST_TOKEN {
            let len = token.len();
            return Err(format!(
                "a token has {LEAST_TOKEN} to {MOST_TOKEN} characters, this has {len}; 'openssl rand -hex 32' makes one"
            ));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a token is one line of ASCII without spaces; 'openssl rand -hex 32' makes one".to_owned());
        }
        Ok(Self(token.as_bytes().to_owned()))
    }

    /// Whether this is it. How long that takes depends on the lengths alone.
    fn is(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

/// Why a change is refused before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The server was not started for changes.
    NoChanges,
    /// Another web page asks.
    ForeignPage,
    /// There is no token.
    NoToken,
    /// It is not the right one.
    WrongToken,
    /// There were too many wrong ones; another try counts after this.
    TooMany(Duration),
}

/// What a request says about who asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asking<'r> {
    /// `Host`.
    pub host: Option<&'r str>,
    /// `Origin`.
    pub origin: Option<&'r str>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<&'r str>,
    /// `Authorization`.
    pub authorization: Option<&'r [u8]>,
}

/// Judges whether this request may change something.
///
/// # Errors
/// Why not.
pub fn judge(
    token: &Token,
    attempts: &mut Attempts,
    asking: &Asking<'_>,
    peer: IpAddr,
    now: Instant,
) -> Result<(), Denied> {
    if !is_own_page(asking) {
        return Err(Denied::ForeignPage);
    }
    let given = asking.authorization.ok_or(Denied::NoToken)?;
    let given = bearer(given).ok_or(Denied::NoToken)?;
    attempts.allowed(peer, now).map_err(Denied::TooMany)?;
    if token.is(given) {
        return Ok(());
    }
    attempts.failed(peer, now);
    Err(Denied::WrongToken)
}

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = authorization.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

fn is_own_page(asking: &Asking<'_>) -> bool {
    let same_site = asking.fetch_site.is_none_or(|site| site == "same-origin");
    let same_origin = asking.origin.is_none_or(|origin| {
        let name = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        name.is_some() && name == asking.host
    });
    same_site && same_origin
}

/// Whether a request to a loopback address names this machine: `localhost`, or an address.
pub fn is_local_name(host: Option<&str>) -> bool {
    // HTTP/1.0 has no Host; no browser speaks it.
    let Some(host) = host else { return true };
    let name = match host.strip_prefix('[') {
        Some(rest) => return rest.split(']').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Wrong tokens by address.
#[derive(Debug, Default)]
pub struct Attempts {
    /// When all that an address has used up is given back.
    whole_again: HashMap<IpAddr, Instant>,
    /// The same, for all addresses beyond those.
    others: Option<Instant>,
}

impl Attempts {
    /// Whether this address may try now; else how long it has to wait.
    fn allowed(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let full = self.whole_again.len() >= MOST_PEERS;
        let known = self.whole_again.get(&account(peer)).copied();
        let whole_again = known.or(self.others.filter(|_| full));
        let used = whole_again.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let most = REFILL * (BURST - 1);
        if used > most { Err(used.saturating_sub(most)) } else { Ok(()) }
    }

    fn failed(&mut self, peer: IpAddr, now: Instant) {
        if self.whole_again.len() >= MOST_PEERS {
            self.whole_again.retain(|_, at| *at > now);
        }
        let peer = account(peer);
        let full = self.whole_again.len() >= MOST_PEERS && !self.whole_again.contains_key(&peer);
        let at = if full { self.others.get_or_insert(now) } else { self.whole_again.entry(peer).or_insert(now) };
        *at = (*at).max(now) + REFILL;
    }
}

/// What counts as one address: of IPv6 the network, of which anybody has as many addresses as they like.
fn account(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    const RIGHT: &str = "Bearer 0123456789abcdef";
    const WRONG: &str = "Bearer 0123456789abcdeX";
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    struct Door {
        token: Token,
        attempts: Attempts,
        start: Instant,
    }

    impl Door {
        fn new() -> Self {
            let token = Token::of("0123456789abcdef\n").unwrap();
            Self { token, attempts: Attempts::default(), start: Instant::now() }
        }

        fn try_at(&mut self, seconds: u64, peer: IpAddr, authorization: &str) -> Result<(), Denied> {
            let asking = Asking { authorization: Some(authorization.as_bytes()), ..Asking::default() };
            judge(&self.token, &mut self.attempts, &asking, peer, self.start + Duration::from_secs(seconds))
        }
    }

    #[test]
    fn only_the_whole_token_opens() {
        let mut door = Door::new();
        assert_eq!(door.try_at(0, PEER, RIGHT), Ok(()));
        assert_eq!(door.try_at(0, PEER, "bearer  0123456789abcdef "), Ok(()));
        for wrong in [WRONG, "Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Bearer "] {
            assert_eq!(Door::new().try_at(0, PEER, wrong), Err(Denied::WrongToken), "{wrong}");
        }
        for none in ["", "Bearer", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert_eq!(Door::new().try_at(0, PEER, none), Err(Denied::NoToken), "{none}");
        }
    }

    #[test]
    fn after_five_wrong_tokens_the_right_one_has_to_wait_too() {
        let mut door = Door::new();
        for _ in 0..5 {
            assert_eq!(door.try_at(0, PEER, WRONG), Err(Denied::WrongToken));
        }
        assert_eq!(door.try_at(0, PEER, RIGHT), Err(Denied::TooMany(REFILL)));
        assert_eq!(door.try_at(9, PEER, WRONG), Err(Denied::TooMany(Duration::from_secs(1))));
        assert_eq!(door.try_at(10, PEER, RIGHT), Ok(()), "tries that did not count cost nothing");
        assert_eq!(door.try_at(10, PEER, WRONG), Err(Denied::WrongToken));
        assert_eq!(door.try_at(10, PEER, WRONG), Err(Denied::TooMany(REFILL)));
        assert_eq!(door.try_at(0, IpAddr::from([10, 0, 0, 1]), RIGHT), Ok(()), "others are not kept out");
    }

    #[test]
    fn however_many_addresses_try_memory_and_rate_stay_bounded() {
        let mut door = Door::new();
        let peers = || (0..20_000_u32).map(|number| IpAddr::from(number.to_be_bytes()));
        let tried = peers().filter(|peer| door.try_at(0, *peer, WRONG) == Err(Denied::WrongToken)).count();
        assert_eq!(tried, MOST_PEERS + BURST as usize);
        assert_eq!(door.attempts.whole_again.len(), MOST_PEERS);
        assert_eq!(door.try_at(100, IpAddr::from([99, 0, 0, 1]), WRONG), Err(Denied::WrongToken));
        assert_eq!(door.attempts.whole_again.len(), 1, "who has waited is forgotten");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut door = Door::new();
        let peer = |host: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, host]);
        for host in 0..5 {
            assert_eq!(door.try_at(0, peer(host), WRONG), Err(Denied::WrongToken));
        }
        assert!(matches!(door.try_at(0, peer(9), WRONG), Err(Denied::TooMany(_))));
    }

    #[test]
    fn another_web_page_is_refused_even_with_the_token() {
        let mut door = Door::new();
        let mut with = |origin, fetch_site| {
            let authorization = Some(RIGHT.as_bytes());
            let asking = Asking { host: Some("localhost:9464"), origin, fetch_site, authorization };
            judge(&door.token, &mut door.attempts, &asking, PEER, door.start)
        };
        assert_eq!(with(Some("http://localhost:9464"), Some("same-origin")), Ok(()));
        assert_eq!(with(Some("https://localhost:9464"), None), Ok(()), "behind a proxy with TLS");
        for origin in ["http://evil.example", "http://localhost", "null", "", "localhost:9464", "ftp://localhost:9464"]
        {
            assert_eq!(with(Some(origin), None), Err(Denied::ForeignPage), "{origin}");
        }
        for site in ["cross-site", "same-site", "none"] {
            assert_eq!(with(None, Some(site)), Err(Denied::ForeignPage), "{site}");
        }
    }

    #[test]
    fn a_name_that_is_not_this_machines_is_told_apart() {
        for own in ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "[::1]:9464", "[::1]", "10.0.0.7:1"] {
            assert!(is_local_name(Some(own)), "{own}");
        }
        assert!(is_local_name(None));
        for foreign in ["evil.example:9464", "localhost.evil.example", "", "[evil]:9464", "127.0.0.1.evil.example"] {
            assert!(!is_local_name(Some(foreign)), "{foreign}");
        }
    }

    #[test]
    fn a_token_file_must_be_ones_own_and_hold_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let read = |text: &[u8], mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Token::read(&path).map(|_| ())
        };
        assert_eq!(read(b"0123456789abcdef\n", 0o600), Ok(()));
        assert_eq!(read(b"0123456789abcdef", 0o440), Ok(()));
        for (text, mode, words) in [
            (&b"0123456789abcdef"[..], 0o644, "chmod 600"),
            (b"0123456789abcdef", 0o620, "chmod 600"),
            (b"short\n", 0o600, "this has 5"),
            (&[b'x'; 1025], 0o600, "this has 1025"),
            (b"0123456789 abcdef", 0o600, "without spaces"),
            (b"0123456789abcdef\n\n", 0o600, "one line"),
            (b"\xff\xfe3456789abcdef0123", 0o600, "UTF-8"),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(words), "{error}");
            assert!(!error.contains("0123456789"), "the token itself is not said: {error}");
        }
        assert!(Token::read(Path::new("/nonexistent/token")).is_err());
    }
}
