//! Two devices: whose memory a kernel reaches.

use emuv_cuda::CUresult;

use super::Rig;
use crate::{context::Context, stream::queue::Op};

/// Reads a word in work of a context; what then becomes of the context.
fn touch(context: &Context, address: u64) -> CUresult {
    let op = Op::device(move |view| view.load_u32(address).map(|_| ()));
    context.streams.submit(&context.streams.legacy(), op).unwrap();
    context.synchronize().map_or_else(|error| error.code(), |()| CUresult::SUCCESS)
}

#[test]
fn another_devices_memory_is_reached_only_with_access() {
    let rig = Rig::with_devices("gpus=2,vram=64M", &[0, 1]);
    let address = rig.allocate(4 << 20);
    let other = |access: bool| {
        let context = rig.simulator.create_context(rig.simulator.device(1).unwrap(), 0);
        if access {
            rig.machine().peers.open_context(context.handle(), rig.context.handle()).unwrap();
        }
        context
    };
    assert_eq!(touch(&other(false), address), CUresult::ILLEGAL_ADDRESS);
    let context = other(true);
    assert_eq!(touch(&context, address), CUresult::SUCCESS);
    assert!(rig.machine().peers.open_context(context.handle(), rig.context.handle()).is_err(), "enabled twice");
    rig.machine().peers.close_context(context.handle(), rig.context.handle()).unwrap();
    assert!(rig.machine().peers.close_context(context.handle(), rig.context.handle()).is_err(), "disabled twice");
    assert_eq!(touch(&context, address), CUresult::ILLEGAL_ADDRESS);
}

#[test]
fn a_pool_is_open_to_a_device_whatever_its_contexts_may_touch() {
    let rig = Rig::with_devices("gpus=2,vram=64M", &[0, 1]);
    let pool = rig.simulator.device(0).unwrap().default_pool;
    let address = rig.context.allocate(4 << 20, pool).unwrap().base;
    let context = rig.simulator.create_context(rig.simulator.device(1).unwrap(), 0);
    rig.machine().peers.set_pool(1, pool, true);
    assert_eq!(touch(&context, address), CUresult::SUCCESS);
    rig.machine().peers.set_pool(1, pool, false);
    assert_eq!(touch(&context, address), CUresult::ILLEGAL_ADDRESS);
}
