//! Changes of slices: what is asked for, and who carries it out.

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// Carries changes out, with this process's own rights.
pub trait Admin: Send + Sync {
    /// The folder of the slices that can be changed here; other users' are shown only.
    fn registry(&self) -> String;

    /// Changes a slice's shares. Gives what there is to say about it, a line each.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    fn resize(&self, slice: &str, resize: &Resize) -> Result<Vec<String>, Refusal>;

    /// Lets programs into a slice, or no more.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    fn enable(&self, slice: &str, enabled: bool) -> Result<(), Refusal>;
}

/// What is to change. What is not given stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Share of VRAM: a size.
    pub vram: Option<Size>,
    /// Share of RAM: a size.
    pub ram: Option<Size>,
    /// Weight for the GPU's time.
    pub weight: Option<u32>,
    /// The most of the GPU's time, in percent.
    pub cap_percent: Option<u32>,
    /// Promise memory that other slices are promised too.
    #[serde(default)]
    pub overcommit: bool,
}

/// A size as it was written: bytes, or a text such as `6G`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a size is a whole number of bytes, or a text such as \"6G\"")]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// As on the command line.
    Text(String),
}

impl Size {
    /// As on the command line.
    pub fn text(&self) -> String {
        match self {
            Self::Bytes(bytes) => bytes.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of reason it is.
    pub kind: RefusalKind,
    /// One line: what was wrong, and what to do.
    pub words: String,
}

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// What was asked for makes no sense.
    Wrong,
    /// There is no such slice.
    NoSlice,
    /// The system does not let this process do it.
    NotAllowed,
    /// Something is not as it would have to be.
    Refused,
}

impl RefusalKind {
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::Wrong => StatusCode::BAD_REQUEST,
            Self::NoSlice => StatusCode::NOT_FOUND,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Refused => StatusCode::CONFLICT,
        }
    }
}

/// The answer to a change.
#[derive(Debug, Serialize)]
pub(crate) struct Changed<'c> {
    pub slice: &'c str,
    pub notes: Vec<String>,
}
