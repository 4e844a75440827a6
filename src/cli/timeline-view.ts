import { timestampMs } from '@bufbuild/protobuf/wkt';
import { TimelineStep, type TimelineEntry } from '../gen/leasehold/v1/audit_service_pb.js';
import { Voucher } from '../gen/leasehold/v1/tool_call_service_pb.js';
import { stepName, voucherName } from './names.ts';
import { line, toned, type Tone } from './output.ts';
import { printable } from './printable.ts';

const tones: Partial<Record<TimelineStep, Tone>> = {
  [TimelineStep.INTENT]: 'bold',
  [TimelineStep.RAISED]: 'bad',
  [TimelineStep.APPROVAL]: 'warn',
  [TimelineStep.SETTLEMENT]: 'dim',
};

const columns = { step: 'settlement'.length, voucher: 'VOUCHED BY'.length, actor: 26, id: 'lse …000000'.length };

export function timelineHead(tree: boolean): void {
  const task = tree ? `${'TASK'.padEnd(columns.id)}  ` : '';
  line(
    toned(
      `${'TIME (UTC)'.padEnd(12)}  ${task}${'STEP'.padEnd(columns.step)}  ${'VOUCHED BY'.padEnd(columns.voucher)}  ` +
        `${'WHO'.padEnd(columns.actor)}  ${'ABOUT'.padEnd(columns.id)}  WHAT`,
      'bold',
    ),
  );
}

/** One line per entry: a stream of them stays readable while it grows. */
export function timelineLine(entry: TimelineEntry, tree: boolean): void {
  const at = entry.eventTime === undefined ? '' : new Date(timestampMs(entry.eventTime)).toISOString().slice(11, 23);
  const cells = [
    at.padEnd(12),
    ...(tree ? [short(entry.taskId).padEnd(columns.id)] : []),
    toned(stepName(entry.step).padEnd(columns.step), tones[entry.step]),
    toned(
      voucherName(entry.voucher).padEnd(columns.voucher),
      entry.voucher === Voucher.SELF_REPORTED ? 'warn' : undefined,
    ),
    printable(who(entry.actor)).padEnd(columns.actor),
    short(entry.callId || entry.leaseId || entry.approvalId).padEnd(columns.id),
    printable(entry.summary),
  ];
  line(cells.join('  '));
}

/** What tells one from another: identifiers of the same second begin alike. */
function short(id: string): string {
  return id === '' ? '-' : `${id.slice(0, 3)} …${id.slice(-6)}`;
}

/** Without its trust domain, and with its end, which says more than its beginning. */
function who(actor: string): string {
  const path = actor.replace(/^spiffe:\/\/[^/]+\//, '');
  return path.length > columns.actor ? `…${path.slice(1 - columns.actor)}` : path;
}
