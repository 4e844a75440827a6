import { differences, type Difference, type ReplayResult } from '../domain/replay.ts';
import { line, table, toned, type Tone } from './output.ts';
import { printable } from './printable.ts';

const headings: Record<Difference, [string, Tone]> = {
  newly_denied: ['Newly denied', 'bad'],
  newly_allowed: ['Newly allowed', 'warn'],
  newly_needs_approval: ['Newly needs approval', 'warn'],
  no_longer_needs_approval: ['No longer needs approval', 'warn'],
  shorter_life: ['Shorter life', 'dim'],
  longer_life: ['Longer life', 'warn'],
  cannot_be_told: ['Cannot be told, because the candidate counts what was not counted then', 'dim'],
};

export function showReplay(result: ReplayResult): void {
  const differing = result.decided - result.same;
  line(
    `${result.decided.toLocaleString('en')} decisions: ${result.same.toLocaleString('en')} the same, ${differing.toLocaleString('en')} different` +
      (result.skipped === 0 ? '' : `; ${result.skipped.toLocaleString('en')} more were not policy's to decide`),
  );
  for (const difference of differences) {
    const groups = result.groups.filter((group) => group.difference === difference);
    if (groups.length === 0) continue;
    const [heading, tone] = headings[difference];
    const total = groups.reduce((sum, { count }) => sum + count, 0);
    line();
    line(toned(`${heading}: ${total.toLocaleString('en')}`, tone));
    table(
      ['AGENT', 'TOOL', 'COUNT', 'FOR EXAMPLE', 'WAS', 'WOULD BE', 'BECAUSE'],
      groups.flatMap((group) =>
        group.samples.map((sample, index) => [
          index === 0 ? group.agent : '',
          index === 0 ? group.access : '',
          index === 0 ? group.count.toLocaleString('en') : '',
          sample.decisionId,
          sample.before,
          sample.after,
          printable(sample.reason),
        ]),
      ),
    );
  }
}
