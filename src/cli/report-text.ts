import { durationMs } from '@bufbuild/protobuf/wkt';
import type { GetReportResponse } from '../gen/leasehold/v1/report_service_pb.js';
import { revocationName, tierName } from './names.ts';
import { iso, span } from './output.ts';
import { printable } from './printable.ts';

interface Part {
  name: string;
  title: string;
  note: string;
  head: readonly string[];
  rows: readonly (readonly string[])[];
}

/** The parts of a report as tables: written out alike in every format. */
function partsOf(report: GetReportResponse): Part[] {
  const n = (value: bigint) => String(value);
  return [
    {
      name: 'agents',
      title: 'Agents',
      note: `${report.agents.filter(({ review }) => review === 'due' || review === 'overdue').length} reviews are due or overdue.`,
      head: ['agent', 'owner', 'risk', 'review by', 'review', 'tasks', 'issued', 'renewed', 'denied'],
      rows: report.agents.map((a) => [
        a.agent,
        a.owner,
        a.risk,
        a.reviewBy,
        a.review,
        n(a.tasks),
        n(a.issued),
        n(a.renewed),
        n(a.denied),
      ]),
    },
    {
      name: 'tools',
      title: 'Tools and tiers',
      note: '',
      head: ['tool', 'tier', 'owner', 'revocation', 'agents that may', 'issued'],
      rows: report.tools.map((t) => [
        t.tool,
        tierName(t.tier),
        t.owner,
        revocationName(t.revocationKind),
        n(t.agents),
        n(t.issued),
      ]),
    },
    {
      name: 'grants',
      title: 'Granted and not used',
      note:
        `${report.unused} of ${report.grants} grants were not used.` +
        (report.grantsIncomplete ? ' The estate is larger than what one report looks at.' : ''),
      head: ['agent', 'tool', 'tier', 'rule'],
      rows: report.unusedGrants.map((g) => [g.agent, g.tool, tierName(g.tier), g.policyRule]),
    },
    {
      name: 'denials',
      title: 'Refusals',
      note: '',
      head: ['agent', 'tool', 'tier', 'effect', 'rule', 'count'],
      rows: report.denials.map((d) => [d.agent, d.tool, tierName(d.tier), d.effect, d.policyRule, n(d.count)]),
    },
    {
      name: 'approvals',
      title: 'Approvals',
      note: '',
      head: ['outcome', 'count', 'median latency'],
      rows: report.approvals.map((a) => [
        a.outcome,
        n(a.count),
        a.medianLatency === undefined ? '' : span(durationMs(a.medianLatency)) || '0s',
      ]),
    },
    {
      name: 'outcomes',
      title: 'What became of the credentials',
      note: '',
      head: ['outcome', 'cause', 'count'],
      rows: report.leaseOutcomes.map((o) => [o.outcome, o.cause, n(o.count)]),
    },
    {
      name: 'tasks',
      title: 'How the tasks ended',
      note: '',
      head: ['state', 'cause', 'count'],
      rows: report.taskOutcomes.map((o) => [o.outcome, o.cause, n(o.count)]),
    },
    {
      name: 'controls',
      title: 'Evidence for frameworks',
      note: 'The editions are named in docs/governance.md. A report is evidence, not a judgement that an item is met.',
      head: ['part', 'framework', 'item', 'title', 'what it shows'],
      rows: report.controls.map((c) => [c.part, c.framework, c.item, c.title, c.evidence]),
    },
  ];
}

export function asMarkdown(report: GetReportResponse): string {
  const cell = (text: string) =>
    printable(text).replaceAll('\\', '\\\\').replaceAll('|', '\\|').replaceAll('<', '&lt;');
  const row = (cells: readonly string[]) => `| ${cells.map(cell).join(' | ')} |`;
  const from = report.since === undefined ? '' : iso(report.since);
  const to = report.until === undefined ? '' : iso(report.until);
  const lines = [
    '# Agents and their access',
    '',
    `From ${from} to ${to}, under policy revision ${report.policyRevision}.`,
  ];
  for (const { title, note, head, rows } of partsOf(report)) {
    lines.push('', `## ${title}`, '');
    if (note !== '') lines.push(note, '');
    if (rows.length === 0) lines.push('None.');
    else lines.push(row(head), row(head.map(() => '---')), ...rows.map(row));
  }
  return `${lines.join('\n')}\n`;
}

/** One table for all parts: part, row, column, value. */
export function asCsv(report: GetReportResponse): string {
  const records = partsOf(report).flatMap(({ name, head, rows }) =>
    rows.flatMap((row, index) => row.map((value, column) => [name, String(index + 1), head[column]!, value])),
  );
  return (
    [['part', 'row', 'column', 'value'], ...records].map((record) => record.map(csvField).join(',')).join('\r\n') +
    '\r\n'
  );
}

/** RFC 4180 §2; and a text that a spreadsheet would run as a formula is kept a text. */
function csvField(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
