//! The table of built-in kernels: names and parameters.

use super::{pointers, run};
use crate::memory::view::{Stop, View};

/// A kernel that every module may contain.
#[derive(Debug)]
pub struct Builtin {
    /// Its name in a module.
    pub name: &'static str,
    /// Sizes of its parameters in bytes, each naturally aligned.
    pub parameters: &'static [usize],
    /// What it does.
    pub run: fn(&mut View<'_>, &Arguments) -> Result<(), Stop>,
}

/// All built-in kernels. The order is that of `cuModuleEnumerateFunctions`.
pub static BUILTINS: &[Builtin] = &[
    Builtin { name: "emuv_fill", parameters: &[8, 8, 4], run: run::fill },
    Builtin { name: "emuv_mix", parameters: &[8, 8, 4], run: run::mix_buffer },
    Builtin { name: "emuv_axpy", parameters: &[8, 8, 4, 8], run: run::axpy },
    Builtin { name: "emuv_gemm", parameters: &[8, 8, 8, 4, 4, 4], run: run::gemm },
    Builtin { name: "emuv_gather", parameters: &[8, 8, 8, 8], run: run::gather },
    Builtin { name: "emuv_chase", parameters: &[8, 8, 8], run: run::chase },
    Builtin { name: "emuv_reduce", parameters: &[8, 8, 8], run: run::reduce },
    Builtin { name: "emuv_touch", parameters: &[8, 4, 4], run: run::touch },
    Builtin { name: "emuv_batched_mix", parameters: &[8, 8, 8, 4], run: pointers::batched_mix },
    Builtin { name: "emuv_store_pointers", parameters: &[8, 8, 8, 8], run: pointers::store_pointers },
    Builtin { name: "emuv_link", parameters: &[8, 8, 8], run: pointers::link },
    Builtin { name: "emuv_walk", parameters: &[8, 8, 8], run: pointers::walk },
    Builtin { name: "emuv_global_mix", parameters: &[8, 4], run: pointers::global_mix },
    Builtin { name: "emuv_global_set", parameters: &[8], run: pointers::global_set },
    // The search for pointers that libemuv_shim.so brings along.
    Builtin { name: "emuv_search", parameters: &[8; 23], run: pointers::search },
    // What memory holds, in 128 bits, likewise.
    Builtin { name: "emuv_hash", parameters: &[8; 4], run: run::hash },
    // Copies memory, likewise.
    Builtin { name: "emuv_copy", parameters: &[8; 3], run: run::copy },
];

impl Builtin {
    /// The kernel of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        BUILTINS.iter().find(|builtin| builtin.name == name)
    }

    /// Where a parameter lies in the argument buffer; `None` past the last one.
    pub fn offset(&self, index: usize) -> Option<usize> {
        let size = *self.parameters.get(index)?;
        let before = self.parameters[..index].iter().fold(0_usize, |end, size| end.next_multiple_of(*size) + size);
        Some(before.next_multiple_of(size))
    }

    /// The size of the argument buffer.
    pub fn buffer_bytes(&self) -> usize {
        let last = self.parameters.len().saturating_sub(1);
        self.offset(last).map_or(0, |offset| offset + self.parameters[last])
    }
}

/// The arguments of one launch, as laid out in the argument buffer.
#[derive(Debug, Clone)]
pub struct Arguments {
    builtin: &'static Builtin,
    buffer: Vec<u8>,
    /// Address of the variable [`pointers::VARIABLE`] of the kernel's module.
    variable: Option<u64>,
}

impl Arguments {
    /// Arguments for a kernel; `None` where the buffer is too short.
    pub fn new(builtin: &'static Builtin, buffer: Vec<u8>) -> Option<Self> {
        (buffer.len() >= builtin.buffer_bytes()).then_some(Self { builtin, buffer, variable: None })
    }

    /// The same arguments for a kernel whose module has the variable [`pointers::VARIABLE`] at that address.
    pub fn with_variable(self, address: Option<u64>) -> Self {
        Self { variable: address, ..self }
    }

    /// Where the module's variable is.
    ///
    /// # Errors
    /// [`Stop::IllegalAddress`] for a module without it.
    pub fn variable(&self) -> Result<u64, Stop> {
        self.variable.ok_or(Stop::IllegalAddress(0))
    }

    /// Where the buffer lies. It stays there while the arguments are not changed or cloned.
    pub fn address(&self) -> u64 {
        self.buffer.as_ptr().expose_provenance() as u64
    }

    fn bytes<const N: usize>(&self, index: usize) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(offset) = self.builtin.offset(index)
            && let Some(found) = self.buffer.get(offset..offset + N)
        {
            bytes.copy_from_slice(found);
        }
        bytes
    }

    /// An 8-byte argument.
    pub fn word(&self, index: usize) -> u64 {
        u64::from_le_bytes(self.bytes(index))
    }

    /// A 4-byte argument.
    pub fn half(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.bytes(index))
    }

    /// A floating-point argument.
    pub fn float(&self, index: usize) -> f32 {
        f32::from_le_bytes(self.bytes(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_laid_out_as_a_c_compiler_does() {
        let axpy = Builtin::find("emuv_axpy").unwrap();
        assert_eq!([0, 1, 2, 3].map(|i| axpy.offset(i)), [Some(0), Some(8), Some(16), Some(24)]);
        assert_eq!(axpy.offset(4), None);
        assert_eq!(axpy.buffer_bytes(), 32);
        assert_eq!(Builtin::find("emuv_fill").unwrap().buffer_bytes(), 20);
        assert!(Builtin::find("no_such_kernel").is_none());
    }
}
