//! Tables that fit: first the gaps narrow, then the least important columns go, at last the names are cut.

use super::words;

/// Blanks before every row.
const INDENT: usize = 2;

/// A name keeps this many columns as long as there is anything else to give up.
const NAME_WIDTH_KEPT: usize = 24;

/// A name keeps this many, whatever happens.
const NAME_WIDTH_MIN: usize = 6;

/// One column.
#[derive(Clone, Copy, Debug)]
pub(in crate::lookup) struct Column {
    head: &'static str,
    side: Side,
    /// The highest goes first when room is short; 0 never does.
    expendable: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    /// Left, and cut when room is short.
    Name,
    Right,
}

impl Column {
    /// Names, which can be long.
    pub(in crate::lookup) const fn name(head: &'static str) -> Self {
        Self { head, side: Side::Name, expendable: 0 }
    }

    /// Short texts.
    pub(in crate::lookup) const fn text(head: &'static str, expendable: u8) -> Self {
        Self { head, side: Side::Left, expendable }
    }

    /// Numbers.
    pub(in crate::lookup) const fn number(head: &'static str, expendable: u8) -> Self {
        Self { head, side: Side::Right, expendable }
    }
}

/// The heads and the rows, each line at most `width` columns wide. The cells are clean already.
pub(in crate::lookup) fn lay_out(columns: &[Column], rows: &[Vec<String>], width: usize) -> String {
    let mut widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(place, column)| {
            let cells = rows.iter().map(|row| row[place].chars().count());
            cells.chain([column.head.len()]).max().unwrap_or(0)
        })
        .collect();
    let mut kept: Vec<usize> = (0..columns.len()).collect();
    let mut gap = 2;
    shrink_names(columns, &kept, &mut widths, gap, width, NAME_WIDTH_KEPT);
    while total(&kept, &widths, gap) > width {
        if gap > 1 {
            gap -= 1;
            continue;
        }
        let Some(place) = (0..kept.len()).max_by_key(|&at| columns[kept[at]].expendable) else { break };
        if columns[kept[place]].expendable == 0 {
            break;
        }
        kept.remove(place);
    }
    shrink_names(columns, &kept, &mut widths, gap, width, NAME_WIDTH_MIN);

    let heads: Vec<String> = columns.iter().map(|column| column.head.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = " ".repeat(INDENT);
        for &place in &kept {
            let cell = words::line(&row[place], widths[place]);
            let blanks = " ".repeat(widths[place] - cell.chars().count());
            let (before, after) =
                if columns[place].side == Side::Right { (blanks, String::new()) } else { (String::new(), blanks) };
            line.push_str(&format!("{before}{cell}{after}{}", " ".repeat(gap)));
        }
        // The last resort, for cells that are wider than any the gateway makes.
        text.push_str(&words::line(line.trim_end(), width));
        text.push('\n');
    }
    text
}

fn total(kept: &[usize], widths: &[usize], gap: usize) -> usize {
    let cells: usize = kept.iter().map(|&place| widths[place]).sum();
    INDENT + cells + gap * kept.len().saturating_sub(1)
}

/// Cuts the names down to what fits, but not below `least`.
fn shrink_names(columns: &[Column], kept: &[usize], widths: &mut [usize], gap: usize, width: usize, least: usize) {
    for &place in kept {
        if columns[place].side == Side::Name {
            let excess = total(kept, widths, gap).saturating_sub(width);
            let shrunk = widths[place].saturating_sub(excess).max(least);
            widths[place] = widths[place].min(shrunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::name("target"), Column::number("score", 0), Column::number("rps", 2), Column::text("health", 1)];

    fn rows(name: &str) -> Vec<Vec<String>> {
        vec![vec![name.into(), "1.5".into(), "1000".into(), "healthy".into()]]
    }

    #[test]
    fn room_is_made_in_order() {
        for (name, width, want) in [
            ("vllm-0", 40, "  target  score   rps  health\n  vllm-0    1.5  1000  healthy\n"),
            ("vllm-0", 28, "  target score  rps health\n  vllm-0   1.5 1000 healthy\n"),
            ("vllm-0", 24, "  target score health\n  vllm-0   1.5 healthy\n"),
            ("vllm-0", 16, "  target score\n  vllm-0   1.5\n"),
            ("a-rather-long-name", 16, "  target   score\n  a-rathe~   1.5\n"),
            ("a-rather-long-name", 10, "  target ~\n  a-rat~ ~\n"),
        ] {
            assert_eq!(lay_out(&COLUMNS, &rows(name), width), want, "{name} in {width}");
        }
    }
}
