use super::*;

const QUIET: Traffic = Traffic { begun: 0, under_way: 0 };

/// `count` extents that stay.
fn weights(foresight: &mut Foresight, count: u32) -> Vec<ExtentId> {
    (0..count).map(|_| foresight.born()).collect()
}

/// A loop of works, each with an extent of its own.
fn rounds(foresight: &mut Foresight, weights: &[ExtentId], rounds: u32) {
    for _ in 0..rounds {
        for weight in weights {
            foresight.note(1, &[*weight], 1);
        }
    }
}

#[test]
fn a_loop_is_foreseen_in_its_second_round() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 10);
    rounds(&mut foresight, &weights, 1);
    assert!(foresight.place().is_none());
    rounds(&mut foresight, &weights, 1);
    assert_eq!(foresight.place(), Some(9));
    assert_eq!(foresight.period(), Some(10));
    assert_eq!(foresight.times(9).len(), 11);
}

#[test]
fn what_is_made_anew_in_each_round_does_not_hide_the_loop() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 10);
    let mut made = Vec::new();
    for _ in 0..3 {
        made.clear();
        for weight in &weights {
            made.push(foresight.born());
            foresight.note(1, &[*weight, made[made.len() - 1]], 1);
        }
        for (weight, activation) in weights.iter().zip(&made).rev() {
            foresight.note(2, &[*weight, *activation], 1);
        }
    }
    assert_eq!(foresight.period(), Some(20));
    assert_eq!(foresight.place(), Some(39));
}

#[test]
fn works_on_the_same_few_buffers_do_not_hide_the_loop() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 20);
    let hot = foresight.born();
    for _ in 0..3 {
        for weight in &weights {
            foresight.note(1, &[*weight, hot], 100);
            for _ in 0..5 {
                foresight.note(2, &[hot], 1);
            }
        }
    }
    assert_eq!(foresight.period(), Some(120));
}

#[test]
fn a_work_more_or_less_does_not_end_the_forecast() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 10);
    rounds(&mut foresight, &weights, 3);
    foresight.note(9, &[], 0);
    rounds(&mut foresight, &weights[..5], 1);
    let turns = foresight.turns();
    rounds(&mut foresight, &weights[6..8], 1);
    assert_eq!(foresight.turns(), turns, "a work more, then one less: it goes on all the same");
    assert_eq!(foresight.place(), Some(27), "where the one before weights[8] was");
}

/// Sequences that grow: each step makes longer what the one before it left, by a work with half of all bytes. Beside that it
/// names, by chance, other memory that there is.
#[test]
fn what_a_work_names_by_chance_does_not_hide_the_loop() {
    for seed in 0..20_u64 {
        let mut state = seed;
        let mut by_chance = || {
            state = mix(state.wrapping_add(1));
            state.is_multiple_of(2)
        };
        let mut foresight = Foresight::default();
        let weights = weights(&mut foresight, 40);
        for round in 0..6 {
            let mut kept = foresight.born();
            for step in 0..8 {
                for weight in &weights {
                    foresight.note(1, &[*weight], 10);
                }
                let longer = foresight.born();
                let mut named = vec![longer, kept];
                if by_chance() {
                    named.insert(1, weights[0]);
                }
                foresight.note(100 + step, &named, 400);
                kept = longer;
                if round > 2 {
                    let whole = foresight.period().is_some_and(|works| works.is_multiple_of(8 * 41));
                    assert!(whole, "seed {seed} round {round} step {step}");
                }
            }
        }
    }
}

#[test]
fn another_phase_is_noticed_and_the_first_one_found_again() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 50);
    rounds(&mut foresight, &weights[..10], 2);
    rounds(&mut foresight, &weights[10..], 1);
    assert!(foresight.place().is_none());
    rounds(&mut foresight, &weights[..4], 1);
    assert_eq!(foresight.place(), Some(13));
}

/// Loops in loops, and now and then something else: most is foreseen, some of it wrongly.
#[test]
fn to_note_works_together_changes_nothing_of_what_is_foreseen() {
    let mut believed = 0;
    for seed in 0..60_u64 {
        let mut state = seed;
        let mut random = |below: u64| {
            state = mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15));
            state % below
        };
        let (mut together, mut apart) = (Foresight::default(), Foresight::default());
        let mut note = |kind, extents: &[ExtentId], bytes, made: ExtentId| {
            for foresight in [&mut together, &mut apart] {
                foresight.next_extent = made;
                foresight.note(kind, extents, bytes);
            }
            apart.catch_up();
            assert_eq!(together.place(), apart.place(), "seed {seed}");
            believed += u64::from(apart.place().is_some());
        };
        let (layers, tokens, rounds) = (6 + random(7), 6 + random(10), 6);
        let (growing, noise, once) = (random(2), 1 + random(3), random(60));
        // Extents are numbers: weights, what is used once a round, and what is made anew.
        let (weights, mut made) = (3 * layers, 3 * layers + once);
        for _ in 0..rounds {
            (weights..weights + once).for_each(|extent| note(1000 + extent, &[extent], 1000, made));
            let mut cache = [made; 12];
            made += 1;
            for token in 0..tokens {
                for (layer, cached) in (0..layers).zip(&mut cache) {
                    for part in 0..3 {
                        made += 1;
                        note(part, &[3 * layer + part, made - 1], 100, made);
                        if random(60) < noise {
                            note(7 + random(3), &[random(weights)], 50, made);
                        }
                    }
                    let before = std::mem::replace(cached, made);
                    made += 1;
                    let grown = growing * token;
                    note(100 + grown, &[before, made - 1, 3 * layer], 500 * (grown + 1), made);
                }
            }
        }
    }
    assert!(believed > 50_000, "{believed}");
}

#[test]
fn the_log_is_bounded() {
    let mut foresight = Foresight::default();
    let weights = weights(&mut foresight, 2);
    rounds(&mut foresight, &weights, u32::try_from(LOG_WORKS).unwrap());
    assert_eq!((foresight.log.len(), foresight.touches.len()), (LOG_WORKS, LOG_WORKS));
}

#[test]
fn a_work_that_reads_at_the_links_speed_stays_where_it_is() {
    let mut foresight = Foresight::default();
    foresight.measured(1, 86 << 20, 1700.0, QUIET);
    foresight.measured(2, 86 << 20, 60_000.0, QUIET);
    assert_eq!(foresight.manner(1), Some(Manner::InPlace));
    assert_eq!(foresight.manner(2), Some(Manner::Move));
    assert_eq!(foresight.manner(3), None);
    // Its like reads more often what lies in RAM the next time.
    foresight.measured(3, 86 << 20, 1700.0, QUIET);
    foresight.measured(3, 86 << 20, 60_000.0, QUIET);
    assert_eq!(foresight.manner(3), Some(Manner::Move));
    // At half the link's speed a work reads each byte more than once: in a loop it is better off with its data brought.
    foresight.set_link(100_000.0);
    assert_eq!(foresight.manner(1), Some(Manner::InPlace));
    let weights = weights(&mut foresight, 10);
    rounds(&mut foresight, &weights, 2);
    assert_eq!(foresight.manner(1), Some(Manner::Move));
    // Nothing reads faster than the link; what seems a little faster names more than it reads.
    foresight.measured(4, 86 << 20, 600.0, QUIET);
    assert_eq!(foresight.manner(4), None);
    foresight.measured(4, 86 << 20, 700.0, QUIET);
    assert_eq!(foresight.manner(4), Some(Manner::InPlace));
}

#[test]
fn a_kind_is_timed_ever_more_rarely() {
    let mut foresight = Foresight::default();
    let timed: Vec<bool> = (0..9).map(|_| foresight.is_to_be_timed(1, QUIET)).collect();
    assert_eq!(timed, [true, true, false, true, false, false, false, true, false]);
}

#[test]
fn a_kind_that_was_slow_beside_copies_is_timed_again() {
    let mut foresight = Foresight::default();
    foresight.set_link(50_000.0);
    let weights = weights(&mut foresight, 10);
    rounds(&mut foresight, &weights, 2);
    // At less than half of the link's speed: it may be the copies' fault, but not all of it.
    assert!(foresight.is_to_be_timed(1, Traffic { begun: 1, under_way: 1 }));
    foresight.measured(1, 50 << 20, 10_000.0, QUIET);
    assert_eq!(foresight.manner(1), Some(Manner::Move));
    assert!(foresight.is_to_be_timed(2, QUIET));
    foresight.measured(2, 50 << 20, 2_500.0, Traffic { begun: 1, under_way: 0 });
    assert_eq!(foresight.manner(2), Some(Manner::InPlace), "at half of it, it may be");
    let busy = Traffic { begun: 2, under_way: 1 };
    let timed = (0..47).filter(|_| foresight.is_to_be_timed(2, busy)).count();
    assert_eq!(timed, 6, "2, 4, 8, 16, 32, 48");
    assert!((0..8).all(|_| foresight.is_to_be_timed(2, QUIET)));
    foresight.measured(2, 50 << 20, 2_500.0, QUIET);
    assert_eq!(foresight.manner(2), Some(Manner::Move), "alone it was no faster");
}
