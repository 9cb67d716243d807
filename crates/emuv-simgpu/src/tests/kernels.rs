//! The built-in kernels against plain loops.

use emuv_cuda::CUresult;

use super::{Argument::*, Rig};
use crate::{
    kernel::{
        builtin::{Arguments, Builtin},
        image::Image,
        pointers::VARIABLE,
        run::mix,
    },
    stream::queue::Op,
};

/// More than one block, and no multiple of one.
const N: usize = 70_001;

fn words(seed: u32) -> Vec<u32> {
    (0..N).map(|i| mix(seed.wrapping_add(u32::try_from(i).unwrap()))).collect()
}

fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|word| f32::from(u16::try_from(word & 0xff).unwrap()) - 100.0).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn place(rig: &Rig, words: &[u32]) -> u64 {
    let address = rig.allocate(words.len() as u64 * 4);
    rig.write(address, words);
    address
}

#[test]
fn fill_and_mix() {
    let rig = Rig::new("vram=64M");
    let buffer = place(&rig, &[0; N]);
    rig.run("emuv_fill", &[Word(buffer), Word(N as u64), Half(u32::MAX - 5)]).unwrap();
    let filled = words(u32::MAX - 5);
    assert!(rig.read(buffer, N) == filled);
    rig.run("emuv_mix", &[Word(buffer), Word(N as u64), Half(3)]).unwrap();
    let wanted: Vec<u32> =
        filled.iter().map(|x| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223).wrapping_add(3)).collect();
    assert!(rig.read(buffer, N) == wanted);
}

#[test]
fn axpy() {
    let rig = Rig::new("vram=64M");
    let (x, y) = (floats(&words(1)), floats(&words(2)));
    let (at_x, at_y) = (place(&rig, &bits(&x)), place(&rig, &bits(&y)));
    rig.run("emuv_axpy", &[Word(at_y), Word(at_x), Half(1.5_f32.to_bits()), Word(N as u64)]).unwrap();
    let wanted: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 1.5_f32.mul_add(*x, *y)).collect();
    assert!(rig.read(at_y, N) == bits(&wanted));
}

#[test]
fn gemm() {
    let rig = Rig::new("vram=64M");
    let (m, n, k) = (7, 5, 9);
    let (a, b) = (floats(&words(3)[..m * k]), floats(&words(4)[..k * n]));
    let [at_a, at_b] = [&a, &b].map(|matrix| place(&rig, &bits(matrix)));
    let at_c = place(&rig, &vec![0; m * n]);
    let [mm, nn, kk] = [m, n, k].map(|size| Half(u32::try_from(size).unwrap()));
    rig.run("emuv_gemm", &[Word(at_c), Word(at_a), Word(at_b), mm, nn, kk]).unwrap();
    let mut wanted = vec![0.0_f32; m * n];
    for r in 0..m {
        for q in 0..n {
            wanted[r * n + q] = (0..k).fold(0.0, |s, i| a[r * k + i].mul_add(b[i * n + q], s));
        }
    }
    assert_eq!(rig.read(at_c, m * n), bits(&wanted));
}

#[test]
fn gather_and_reduce() {
    let rig = Rig::new("vram=64M");
    let source = words(5);
    let index: Vec<u32> = words(6).iter().map(|word| word % u32::try_from(N).unwrap()).collect();
    let (at_source, at_index, at_target) = (place(&rig, &source), place(&rig, &index), place(&rig, &[0; N]));
    rig.run("emuv_gather", &[Word(at_target), Word(at_source), Word(at_index), Word(N as u64)]).unwrap();
    let wanted: Vec<u32> = index.iter().map(|i| source[usize::try_from(*i).unwrap()]).collect();
    assert!(rig.read(at_target, N) == wanted);

    let out = place(&rig, &[10, 0]);
    rig.run("emuv_reduce", &[Word(out), Word(at_source), Word(N as u64)]).unwrap();
    let sum =
        (0..).zip(&source).fold(10_u64, |sum, (i, word)| sum.wrapping_add(u64::from(*word).wrapping_mul(2 * i + 1)));
    assert_eq!(rig.read(out, 2), [u32::try_from(sum & 0xffff_ffff).unwrap(), u32::try_from(sum >> 32).unwrap()]);
}

#[test]
fn chase_and_touch() {
    let rig = Rig::new("vram=64M");
    let pair = |word: u64| [u32::try_from(word & 0xffff_ffff).unwrap(), u32::try_from(word >> 32).unwrap()];
    let cells = rig.allocate(64);
    let ring: Vec<u32> = (0..4_u64).flat_map(|cell| pair(cells + (cell + 3) % 4 * 8)).collect();
    rig.write(cells, &ring);
    let out = rig.allocate(8);
    rig.run("emuv_chase", &[Word(out), Word(cells), Word(6)]).unwrap();
    // Each step goes three cells on: 6 * 3 mod 4.
    assert_eq!(rig.read(out, 2), pair(cells + 2 * 8));

    let (a, b) = (rig.allocate(16 << 10), rig.allocate(8 << 10));
    rig.write(a, &[1; 4096]);
    rig.write(b, &[2; 2048]);
    let list = rig.allocate(32);
    let entries = [pair(a), pair(16 << 10), pair(b), pair(8 << 10)].concat();
    rig.write(list, &entries);
    rig.run("emuv_touch", &[Word(list), Half(2), Half(5)]).unwrap();
    let touched = |base: u64, pages: usize| -> Vec<Vec<u32>> {
        (0..pages as u64).map(|page| rig.read(base + page * 4096, 2)).collect()
    };
    assert_eq!(touched(a, 4), vec![vec![6, 1]; 4]);
    assert_eq!(touched(b, 2), vec![vec![7, 2]; 2]);
}

#[test]
fn a_module_variable_names_the_buffer() {
    let rig = Rig::new("vram=64M,poison=1");
    let image = Image::parse(".visible .global .align 8 .u64 emuv_pointer; .visible .entry emuv_global_mix() {}");
    let module = rig.simulator.load_module(&rig.context, image.clone()).unwrap();
    let function = rig.simulator.module_function(module, "emuv_global_mix").unwrap();
    let function = rig.simulator.function(function).unwrap();
    let variable = rig.simulator.global_of(&function, &rig.context, VARIABLE).unwrap().unwrap();
    assert_eq!(rig.simulator.module_global(module, VARIABLE).unwrap(), (variable, 8));
    assert_eq!(rig.read(variable, 2), [0, 0], "a variable begins as zero");

    let buffer = place(&rig, &[3, 4]);
    let run = |kernel: &str, bytes: Vec<u8>| {
        let builtin = Builtin::find(kernel).unwrap();
        let arguments = Arguments::new(builtin, bytes).unwrap().with_variable(Some(variable));
        let stream = rig.context.streams.create(0, 0);
        rig.context.streams.submit(&stream, Op::device(move |view| (builtin.run)(view, &arguments))).unwrap();
        rig.context.synchronize().unwrap();
    };
    run("emuv_global_set", buffer.to_le_bytes().to_vec());
    run("emuv_global_mix", [2_u64.to_le_bytes().as_slice(), &7_u32.to_le_bytes()].concat());
    let mixed = |x: u32| x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223).wrapping_add(7);
    assert_eq!(rig.read(buffer, 2), [mixed(3), mixed(4)]);

    // A library has its own variable in each context; a module without one has none.
    let library = rig.simulator.load_library(image);
    let kernel = rig.simulator.library_kernel(library, "emuv_global_mix").unwrap();
    let kernel = rig.simulator.function(kernel).unwrap();
    let other = rig.simulator.global_of(&kernel, &rig.context, VARIABLE).unwrap().unwrap();
    assert_ne!(other, variable);
    assert_eq!(rig.simulator.global_of(&kernel, &rig.context, VARIABLE).unwrap(), Some(other));
    let bare = rig.simulator.load_module(&rig.context, Image::parse(".entry emuv_global_set() {}")).unwrap();
    let bare = rig.simulator.module_function(bare, "emuv_global_set").unwrap();
    let bare = rig.simulator.function(bare).unwrap();
    assert_eq!(rig.simulator.global_of(&bare, &rig.context, VARIABLE).unwrap(), None);
    assert_eq!(rig.run("emuv_global_set", &[Word(buffer)]).unwrap_err().code(), CUresult::ILLEGAL_ADDRESS);
}
