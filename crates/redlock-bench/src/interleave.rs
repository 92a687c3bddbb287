//! Every contender has its turn in every round, in shuffled order: what the machine does
//! meanwhile happens to all of them, and ratios of one round can be compared.

use crate::scenario::Result;

/// What each contender did, round by round.
#[derive(Debug)]
pub(crate) struct Rounds<F>(Vec<Vec<F>>);

/// Lets each of the contenders run once in each round. `run` is told which of them.
pub(crate) async fn interleave<F>(
    contenders: usize,
    rounds: usize,
    mut run: impl AsyncFnMut(usize) -> Result<F>,
) -> Result<Rounds<F>> {
    let mut figures: Vec<Vec<F>> = (0..contenders).map(|_| Vec::with_capacity(rounds)).collect();
    let mut order: Vec<usize> = (0..contenders).collect();
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        for &contender in &order {
            figures[contender].push(run(contender).await?);
        }
    }
    Ok(Rounds(figures))
}

impl<F> Rounds<F> {
    /// The median of what one contender did.
    pub(crate) fn median(&self, contender: usize, of: impl Fn(&F) -> f64) -> f64 {
        median(self.0[contender].iter().map(of))
    }

    /// The median of the ratios of rounds: of one contender to another.
    pub(crate) fn ratio(&self, contender: usize, to: usize, of: impl Fn(&F) -> f64) -> f64 {
        let pairs = self.0[contender].iter().zip(&self.0[to]);
        median(pairs.map(|(own, other)| of(own) / of(other)))
    }

    /// All that one contender did.
    pub(crate) fn of(&self, contender: usize) -> &[F] {
        &self.0[contender]
    }
}

/// Not a number if there are no figures.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => figures[len / 2],
        len => f64::midpoint(figures[len / 2 - 1], figures[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ratios_are_taken_within_rounds() {
        let mut turns = [0.0, 0.0];
        let rounds = interleave(2, 3, async |contender| {
            turns[contender] += 1.0;
            Ok(turns[contender] * [2.0, 1.0][contender])
        });
        let rounds = rounds.await.unwrap();
        assert_eq!(rounds.ratio(0, 1, |figure| *figure), 2.0);
        assert_eq!(rounds.median(1, |figure| *figure), 2.0);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), 3.0);
        assert!(median([]).is_nan());
    }
}
