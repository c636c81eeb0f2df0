//! In which order the apps of a stack are started. Pure.

/// A circle of those that wait for each other, the first one again at its end; `None` if there is an order.
///
/// `after` is, for each, the places of those that it waits for.
#[must_use]
pub fn circle(after: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        No,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::No; after.len()];
    // Each with how many of those it waits for were looked at: a file may have a chain of hundreds.
    let mut way: Vec<(usize, usize)> = vec![];
    for start in 0..after.len() {
        if seen[start] == Seen::No {
            way.push((start, 0));
            seen[start] = Seen::OnTheWay;
        }
        while let Some((app, looked_at)) = way.last_mut() {
            let app = *app;
            let Some(next) = after[app].get(*looked_at).copied() else {
                seen[app] = Seen::Done;
                way.pop();
                continue;
            };
            *looked_at += 1;
            match seen[next] {
                Seen::No => {
                    seen[next] = Seen::OnTheWay;
                    way.push((next, 0));
                }
                Seen::OnTheWay => {
                    let from = way.iter().position(|(app, _)| *app == next)?;
                    let round = way[from..].iter().map(|(app, _)| *app);
                    return Some(round.chain([next]).collect());
                }
                Seen::Done => {}
            }
        }
    }
    None
}

/// The places of all in an order in which none comes before those that it waits for; otherwise they stay as they are.
///
/// Those of a circle come last.
#[must_use]
pub fn order(after: &[Vec<usize>]) -> Vec<usize> {
    let mut order: Vec<usize> = vec![];
    let mut placed = vec![false; after.len()];
    loop {
        let ready = |app: &usize| !placed[*app] && after[*app].iter().all(|other| placed[*other]);
        let Some(next) = (0..after.len()).find(ready) else {
            break;
        };
        placed[next] = true;
        order.push(next);
    }
    order.extend((0..after.len()).filter(|app| !placed[*app]));
    order
}

/// The same in steps: what is in one waits for nothing but what is in those before it.
#[must_use]
pub fn steps(after: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut step_of = vec![0; after.len()];
    let mut steps: Vec<Vec<usize>> = vec![];
    for app in order(after) {
        let others = after[app].iter().map(|other| step_of[*other] + 1);
        let step = others.max().unwrap_or(0);
        step_of[app] = step;
        if steps.len() <= step {
            steps.resize(step + 1, vec![]);
        }
        steps[step].push(app);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each, those that it waits for.
    type After<'a> = &'a [&'a [usize]];

    #[test]
    fn a_circle_is_found_with_the_way_round_it() {
        let cases: [(After<'_>, Option<&[usize]>); 7] = [
            (&[], None),
            (&[&[], &[0], &[0, 1]], None),
            // Two ways to the same are no circle.
            (&[&[1, 2], &[3], &[3], &[]], None),
            (&[&[0]], Some(&[0, 0])),
            (&[&[1], &[0]], Some(&[0, 1, 0])),
            (&[&[1], &[2], &[3], &[1]], Some(&[1, 2, 3, 1])),
            (&[&[], &[0, 2], &[3], &[1]], Some(&[1, 2, 3, 1])),
        ];
        for (after, expected) in cases {
            let after: Vec<Vec<usize>> = after.iter().map(|list| list.to_vec()).collect();
            assert_eq!(circle(&after).as_deref(), expected, "{after:?}");
        }
    }

    #[test]
    fn a_chain_of_a_whole_file_is_no_deep_recursion() {
        let long = 200_000;
        let mut chain: Vec<Vec<usize>> = (0..long).map(|app| vec![app + 1]).collect();
        chain.push(vec![]);
        assert_eq!(circle(&chain), None);
        chain[long].push(0);
        assert_eq!(circle(&chain).map(|round| round.len()), Some(long + 2));
    }

    #[test]
    fn none_comes_before_those_that_it_waits_for() {
        let cases: [(After<'_>, &[usize]); 5] = [
            (&[&[], &[], &[]], &[0, 1, 2]),
            (&[&[1], &[2], &[]], &[2, 1, 0]),
            (&[&[2], &[], &[]], &[1, 2, 0]),
            (&[&[1, 2], &[3], &[3], &[]], &[3, 1, 2, 0]),
            (&[&[1], &[0], &[]], &[2, 0, 1]),
        ];
        for (after, expected) in cases {
            let after: Vec<Vec<usize>> = after.iter().map(|list| list.to_vec()).collect();
            assert_eq!(order(&after), expected, "{after:?}");
        }
    }

    #[test]
    fn what_waits_for_nothing_else_is_one_step() {
        let cases: [(After<'_>, After<'_>); 4] = [
            (&[], &[]),
            (&[&[], &[]], &[&[0, 1]]),
            (&[&[1], &[2], &[]], &[&[2], &[1], &[0]]),
            (&[&[], &[], &[0, 1], &[0], &[2]], &[&[0, 1], &[2, 3], &[4]]),
        ];
        for (after, expected) in cases {
            let after: Vec<Vec<usize>> = after.iter().map(|list| list.to_vec()).collect();
            assert_eq!(steps(&after), expected, "{after:?}");
        }
    }
}
