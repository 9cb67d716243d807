//! The programs. Each sums up what it has the GPU add, and compares.

use emuv_state::env;
use shuttle::thread::spawn;

use crate::{
    gpu,
    program::{self, Buffer, MIB},
    schedules::Scenario,
};

/// Memory of the card, bytes.
const VRAM: &str = "16M";
const RAM: &str = "96M";

const DYNAMIC: &[(&str, &str)] = &[(env::VRAM, VRAM), (env::RAM, RAM), (env::POLICY, "dynamic")];
const SAFE: &[(&str, &str)] = &[(env::VRAM, VRAM), (env::RAM, RAM), (env::POLICY, "dynamic"), (env::SAFE, "1")];
const TORTURE: &[(&str, &str)] = &[(env::VRAM, VRAM), (env::RAM, RAM), (env::POLICY, "torture:7")];

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario { name: "threads_share_vram_that_holds_half", settings: DYNAMIC, clock: false, body: share_vram },
    Scenario { name: "threads_share_vram_and_limits_run_out", settings: DYNAMIC, clock: true, body: share_vram },
    Scenario { name: "threads_share_vram_under_torture", settings: TORTURE, clock: false, body: share_vram },
    Scenario { name: "threads_share_vram_safely", settings: SAFE, clock: false, body: share_vram },
    Scenario { name: "two_threads_use_the_same_memory", settings: DYNAMIC, clock: false, body: same_memory },
    Scenario {
        name: "two_threads_use_the_same_memory_under_torture",
        settings: TORTURE,
        clock: false,
        body: same_memory,
    },
    Scenario { name: "memory_comes_and_goes", settings: DYNAMIC, clock: false, body: come_and_go },
    Scenario { name: "memory_comes_and_goes_under_torture", settings: TORTURE, clock: true, body: come_and_go },
    Scenario { name: "blocks_of_pools_go_from_stream_to_stream", settings: DYNAMIC, clock: false, body: pools },
    Scenario { name: "pointers_are_followed_while_data_moves", settings: DYNAMIC, clock: false, body: pointers },
    Scenario { name: "pointers_are_followed_under_torture", settings: TORTURE, clock: false, body: pointers },
    Scenario { name: "the_driver_refuses_a_mapping_while_data_moves", settings: TORTURE, clock: false, body: refused },
];

fn each_in_a_thread(count: usize, body: impl Fn(usize) + Send + Clone + 'static) {
    let threads: Vec<_> = (0..count)
        .map(|index| {
            let body = body.clone();
            spawn(move || body(index))
        })
        .collect();
    for thread in threads {
        thread.join().expect("a thread of the program's");
    }
}

/// A stream of the program's.
fn stream(index: usize) -> usize {
    0x9000 + index
}

/// Each thread has memory of its own and goes round over it.
fn share_vram() {
    each_in_a_thread(2, |index| {
        let stream = stream(index);
        let buffers = [6 * MIB, 4 * MIB, 6 * MIB].map(program::allocate);
        buffers.iter().for_each(|buffer| program::set(*buffer, 100, stream));
        for round in 0..3 {
            buffers.iter().for_each(|buffer| program::add(*buffer, 1 + round, stream));
            if round == 1 {
                program::wait(stream);
            }
        }
        for buffer in buffers {
            assert_eq!(program::get(buffer), 100 + 1 + 2 + 3);
            program::free(buffer);
        }
    });
}

/// Two streams add to the same memory, and to more of their own.
fn same_memory() {
    let shared = [program::allocate(8 * MIB), program::allocate(4 * MIB)];
    shared.iter().for_each(|buffer| program::set(*buffer, 0, stream(9)));
    program::wait(stream(9));
    each_in_a_thread(2, move |index| {
        let own = program::allocate(6 * MIB);
        program::set(own, 5, stream(index));
        for _ in 0..3 {
            program::add(shared[0], 1, stream(index));
            program::add(own, 1, stream(index));
            program::add(shared[1], 10, stream(index));
        }
        assert_eq!(program::get(own), 8);
        program::free(own);
    });
    assert_eq!(shared.map(program::get), [6, 60]);
    shared.into_iter().for_each(program::free);
}

/// Memory is allocated until there is no more, used and freed, with work in flight.
fn come_and_go() {
    each_in_a_thread(2, |index| {
        let mut kept: Vec<(Buffer, u64)> = Vec::new();
        for round in 0..5 {
            let bytes = [20 * MIB, 2 * MIB, 10 * MIB, 24 * MIB, 2 * MIB][(round + index) % 5];
            if let Some(buffer) = program::try_allocate(bytes) {
                program::set(buffer, round as u64, stream(index));
                kept.push((buffer, round as u64));
            }
            for (buffer, sum) in &mut kept {
                program::add(*buffer, 7, stream(index));
                *sum += 7;
            }
            if round % 2 == 1 {
                let (buffer, _) = kept.remove(0);
                program::free(buffer);
            }
        }
        for (buffer, sum) in kept {
            assert_eq!(program::get(buffer), sum);
            program::free(buffer);
        }
    });
}

/// Stream-ordered memory, which another stream may get when it is free.
fn pools() {
    each_in_a_thread(2, |index| {
        let stream = stream(index);
        let kept = program::allocate_in_order(8 * MIB, stream);
        program::set(kept, 1, stream);
        for round in 0..4 {
            let block = program::allocate_in_order(if round % 2 == 0 { 6 * MIB } else { 4 * MIB }, stream);
            program::set(block, round, stream);
            program::add(block, 1, stream);
            program::add(kept, 1, stream);
            if round == 2 {
                assert_eq!(program::get(block), round + 1);
            }
            program::free_in_order(block, stream);
        }
        assert_eq!(program::get(kept), 5);
        program::free_in_order(kept, stream);
    });
}

/// A kernel reaches memory that no argument shows, through a pointer that another kernel has stored.
fn pointers() {
    each_in_a_thread(2, |index| {
        let stream = stream(index);
        let (table, data, other) = (program::allocate(2 * MIB), program::allocate(6 * MIB), program::allocate(8 * MIB));
        for buffer in [table, data, other] {
            program::set(buffer, 0, stream);
        }
        program::point(table, data, stream);
        for _ in 0..3 {
            program::add(other, 1, stream);
            program::add_through(table, 1, stream);
        }
        program::wait(stream);
        program::add(other, 1, stream);
        program::add_through(table, 1, stream);
        assert_eq!([data, other].map(program::get), [4, 4]);
        [table, data, other].into_iter().for_each(program::free);
    });
}

/// From some exchange on nothing moves any more, while copies are under way; all memory stays what it was, and what was
/// kept to move into can be had.
fn refused() {
    gpu::with(|gpu| gpu.refuse_exchange(6));
    share_vram();
    let most = program::try_allocate(88 * MIB);
    program::free(most.expect("nothing else is held"));
}
