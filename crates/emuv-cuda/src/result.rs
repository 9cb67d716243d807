//! Result codes as open integers.

use std::{fmt, num::NonZeroU32};

use crate::{nvml_types::nvmlReturn_enum, types::cudaError_enum};

/// What a driver call gives: nothing, or the driver's own error code.
pub type CuResult<T = ()> = Result<T, CuError>;

/// Any result code but success, known to us or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CuError(NonZeroU32);

impl CuError {
    /// An argument is out of range.
    pub const INVALID_VALUE: Self = Self(NonZeroU32::MIN);
    /// The call is not supported.
    pub const NOT_SUPPORTED: Self = Self(NonZeroU32::new(cudaError_enum::NOT_SUPPORTED.0).unwrap());

    /// The code as the driver gave it.
    pub fn code(self) -> cudaError_enum {
        cudaError_enum(self.0.get())
    }

    /// Whether the driver had no memory left.
    pub fn is_out_of_memory(self) -> bool {
        self.code() == cudaError_enum::OUT_OF_MEMORY
    }
}

impl fmt::Debug for CuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code().name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "CUDA error {}", self.0),
        }
    }
}

impl std::error::Error for CuError {}

impl cudaError_enum {
    /// The call did what it should.
    pub const SUCCESS: Self = Self::CUDA_SUCCESS;
    /// An argument is out of range.
    pub const INVALID_VALUE: Self = Self::CUDA_ERROR_INVALID_VALUE;
    /// No memory left.
    pub const OUT_OF_MEMORY: Self = Self::CUDA_ERROR_OUT_OF_MEMORY;
    /// `cuInit` has not been called.
    pub const NOT_INITIALIZED: Self = Self::CUDA_ERROR_NOT_INITIALIZED;
    /// No GPU (also what emuV says when there is no driver).
    pub const NO_DEVICE: Self = Self::CUDA_ERROR_NO_DEVICE;
    /// No context, or one that is gone.
    pub const INVALID_CONTEXT: Self = Self::CUDA_ERROR_INVALID_CONTEXT;
    /// A named thing, here often a driver symbol, does not exist.
    pub const NOT_FOUND: Self = Self::CUDA_ERROR_NOT_FOUND;
    /// The call is not supported.
    pub const NOT_SUPPORTED: Self = Self::CUDA_ERROR_NOT_SUPPORTED;
    /// A kernel touched an address that is not mapped; sticky.
    pub const ILLEGAL_ADDRESS: Self = Self::CUDA_ERROR_ILLEGAL_ADDRESS;
    /// Nothing better is known.
    pub const UNKNOWN: Self = Self::CUDA_ERROR_UNKNOWN;

    /// Splits success from every other code.
    pub fn ok(self) -> CuResult {
        NonZeroU32::new(self.0).map_or(Ok(()), |code| Err(CuError(code)))
    }

    /// The name of the codes that emuV itself speaks of; `None` for the rest.
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::SUCCESS => "CUDA_SUCCESS",
            Self::INVALID_VALUE => "CUDA_ERROR_INVALID_VALUE",
            Self::OUT_OF_MEMORY => "CUDA_ERROR_OUT_OF_MEMORY",
            Self::NOT_INITIALIZED => "CUDA_ERROR_NOT_INITIALIZED",
            Self::CUDA_ERROR_DEINITIALIZED => "CUDA_ERROR_DEINITIALIZED",
            Self::NO_DEVICE => "CUDA_ERROR_NO_DEVICE",
            Self::CUDA_ERROR_INVALID_DEVICE => "CUDA_ERROR_INVALID_DEVICE",
            Self::INVALID_CONTEXT => "CUDA_ERROR_INVALID_CONTEXT",
            Self::CUDA_ERROR_INVALID_HANDLE => "CUDA_ERROR_INVALID_HANDLE",
            Self::NOT_FOUND => "CUDA_ERROR_NOT_FOUND",
            Self::ILLEGAL_ADDRESS => "CUDA_ERROR_ILLEGAL_ADDRESS",
            Self::CUDA_ERROR_LAUNCH_FAILED => "CUDA_ERROR_LAUNCH_FAILED",
            Self::CUDA_ERROR_NOT_PERMITTED => "CUDA_ERROR_NOT_PERMITTED",
            Self::NOT_SUPPORTED => "CUDA_ERROR_NOT_SUPPORTED",
            Self::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            Self::UNKNOWN => "CUDA_ERROR_UNKNOWN",
            _ => return None,
        })
    }
}

impl From<CuError> for cudaError_enum {
    fn from(error: CuError) -> Self {
        error.code()
    }
}

impl From<CuResult> for cudaError_enum {
    fn from(result: CuResult) -> Self {
        result.map_or_else(CuError::code, |()| Self::SUCCESS)
    }
}

impl nvmlReturn_enum {
    /// The call did what it should.
    pub const SUCCESS: Self = Self::NVML_SUCCESS;
    /// The library has no such function.
    pub const FUNCTION_NOT_FOUND: Self = Self::NVML_ERROR_FUNCTION_NOT_FOUND;

    /// Whether the call did what it should.
    pub fn is_ok(self) -> bool {
        self == Self::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_passes_through_unchanged() {
        let newer = cudaError_enum(4321);
        let error = newer.ok().unwrap_err();
        assert_eq!(cudaError_enum::from(error), newer);
        assert_eq!(error.to_string(), "CUDA error 4321");
    }

    #[test]
    fn the_named_errors_have_the_drivers_codes() {
        assert_eq!(CuError::INVALID_VALUE.code(), cudaError_enum::INVALID_VALUE);
        assert_eq!(CuError::NOT_SUPPORTED.code(), cudaError_enum::NOT_SUPPORTED);
    }

    #[test]
    fn success_is_no_error() {
        assert_eq!(cudaError_enum::SUCCESS.ok(), Ok(()));
        assert_eq!(cudaError_enum::from(Ok(())), cudaError_enum::SUCCESS);
    }
}
