//! Figures that are taken in turns, so that what disturbs one disturbs the others.

/// So often each figure is taken.
const ROUNDS: usize = 5;

/// One of several ways of doing the same.
pub struct Way {
    name: &'static str,
    take: Box<dyn Fn() -> f64>,
}

impl Way {
    /// A way by name; `take` takes one figure.
    pub fn new(name: &'static str, take: impl Fn() -> f64 + 'static) -> Self {
        Self {
            name,
            take: Box::new(take),
        }
    }
}

/// Takes all figures in turns, from front to back and from back to front, and prints for each the median, the least and the
/// greatest, and its ratio to the first of its round likewise.
#[expect(clippy::print_stdout, reason = "this is what it is for")]
pub fn compare(title: &str, unit: &str, ways: &[Way]) {
    let mut figures = vec![Vec::new(); ways.len()];
    for round in 0..ROUNDS {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            figures[way].push((ways[way].take)());
        }
    }
    println!(
        "\n{title}: {unit}, median of {ROUNDS} (least to greatest), and as a multiple of the first"
    );
    for (way, taken) in ways.iter().zip(&figures) {
        let ratios = taken
            .iter()
            .zip(&figures[0])
            .map(|(own, first)| own / first);
        let ratios: Vec<f64> = ratios.collect();
        let digits = if taken[0] < 100.0 { 1 } else { 0 };
        println!(
            "  {:58} {:>9} {:>18}   {:>7} {:>16}",
            way.name,
            format!("{:.digits$}", median(taken)),
            spread(taken, digits),
            format!("{:.2}x", median(&ratios)),
            spread(&ratios, 2),
        );
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(figures: &[f64], digits: usize) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = figures.iter().copied().fold(0.0, f64::max);
    format!("({least:.digits$} to {greatest:.digits$})")
}
