//! Pointer attributes of placed memory, as the driver would give them for its own `cuMemAlloc` (measured
//! on driver 580). The driver itself would call memory in RAM host memory.

use emuv_cuda::types::*;

use crate::handles::Spilled;

/// What is known of an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// The address asked for.
    pub address: u64,
    /// Where the program's allocation starts.
    pub start: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its context's handle.
    pub context: u64,
    /// Its device's ordinal.
    pub device: CUdevice,
    /// Its number, unique in the process.
    pub number: u64,
    /// Its stream-ordered pool's handle, or zero.
    pub pool: u64,
    /// Whether the memory IPC calls take it.
    pub can_be_shared: bool,
}

/// A value with the width that the attribute has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// 64 bits: an address, a size, a handle, an id.
    Address(u64),
    /// 32 bits.
    Number(u32),
    /// One byte.
    Flag(bool),
}

/// Numbers of memory that another process has allocated start here.
pub(crate) const IMPORTED: u64 = 1 << 40;

/// The buffer ids that emuV gives start here, away from the driver's own, which count from 1.
const BUFFER_IDS: u64 = 1 << 48;

/// The value of an attribute. `None`: the driver's own answer is right. `Some(None)`: not applicable.
#[allow(clippy::option_option)]
pub(crate) fn attribute(facts: &Facts, which: CUpointer_attribute) -> Option<Option<Value>> {
    Some(Some(match which {
        CU_POINTER_ATTRIBUTE_CONTEXT => Value::Address(facts.context),
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE => Value::Number(CU_MEMORYTYPE_DEVICE),
        CU_POINTER_ATTRIBUTE_DEVICE_POINTER => Value::Address(facts.address),
        CU_POINTER_ATTRIBUTE_HOST_POINTER => return Some(None),
        CU_POINTER_ATTRIBUTE_SYNC_MEMOPS => Value::Flag(true),
        CU_POINTER_ATTRIBUTE_BUFFER_ID => Value::Address(BUFFER_IDS + facts.number),
        CU_POINTER_ATTRIBUTE_IS_MANAGED => Value::Flag(false),
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL => Value::Number(facts.device.cast_unsigned()),
        CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE => Value::Flag(facts.can_be_shared),
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR | CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR => Value::Address(facts.start),
        CU_POINTER_ATTRIBUTE_RANGE_SIZE | CU_POINTER_ATTRIBUTE_MAPPING_SIZE => Value::Address(facts.bytes),
        CU_POINTER_ATTRIBUTE_MAPPED => Value::Flag(true),
        CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES => Value::Address(0),
        CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE => Value::Flag(false),
        CU_POINTER_ATTRIBUTE_ACCESS_FLAGS => Value::Number(CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE),
        CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE => Value::Address(facts.pool),
        CU_POINTER_ATTRIBUTE_MEMORY_BLOCK_ID => Value::Address(BUFFER_IDS + facts.number),
        _ => return None,
    }))
}

/// What the driver would answer wrongly for device memory that the program mapped itself and that lies in
/// RAM (measured: it says host memory that starts at 0, and refuses to say more of it).
pub(crate) fn spilled_mapping(mapping: Spilled, which: CUpointer_attribute) -> Option<Value> {
    match which {
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE => Some(Value::Number(CU_MEMORYTYPE_DEVICE)),
        CU_POINTER_ATTRIBUTE_SYNC_MEMOPS => Some(Value::Flag(true)),
        CU_POINTER_ATTRIBUTE_RANGE_START_ADDR => Some(Value::Address(mapping.start)),
        CU_POINTER_ATTRIBUTE_RANGE_SIZE => Some(Value::Address(mapping.bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        address: 0x5010,
        start: 0x5000,
        bytes: 4096,
        context: 77,
        device: 1,
        number: 9,
        pool: 0,
        can_be_shared: true,
    };

    #[test]
    fn an_interior_address_belongs_to_the_programs_allocation() {
        assert_eq!(attribute(&FACTS, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR), Some(Some(Value::Address(0x5000))));
        assert_eq!(attribute(&FACTS, CU_POINTER_ATTRIBUTE_RANGE_SIZE), Some(Some(Value::Address(4096))));
        assert_eq!(attribute(&FACTS, CU_POINTER_ATTRIBUTE_DEVICE_POINTER), Some(Some(Value::Address(0x5010))));
    }

    #[test]
    fn placed_memory_is_device_memory_wherever_it_lies() {
        assert_eq!(
            attribute(&FACTS, CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
            Some(Some(Value::Number(CU_MEMORYTYPE_DEVICE)))
        );
        assert_eq!(attribute(&FACTS, CU_POINTER_ATTRIBUTE_IS_MANAGED), Some(Some(Value::Flag(false))));
        assert_eq!(attribute(&FACTS, CU_POINTER_ATTRIBUTE_HOST_POINTER), Some(None));
    }

    #[test]
    fn an_attribute_that_is_new_to_emuv_is_the_drivers_to_answer() {
        assert_eq!(attribute(&FACTS, 4711), None);
    }
}
