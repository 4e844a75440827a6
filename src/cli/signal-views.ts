import type { Signal, SignalSubject } from '../gen/leasehold/v1/signal_service_pb.js';
import { line, relative, table, type Tone } from './output.ts';

export function subjectText(subject: SignalSubject | undefined): string {
  const what = subject?.subject;
  if (what?.case === undefined) return '';
  return `${what.case === 'taskId' ? 'task' : what.case} ${what.value}`;
}

export function showSignals(signals: readonly Signal[]): void {
  if (signals.length === 0) {
    line('no signals');
    return;
  }
  table(
    ['SIGNAL', 'SUBJECT', 'KIND', 'VALUE', 'SINCE', 'UNTIL', 'SOURCE', 'REASON'],
    signals.map((signal) => [
      signal.signalId,
      subjectText(signal.subject),
      { text: signal.kind, tone: tone(signal) },
      String(signal.value),
      relative(signal.occurTime) || '-',
      signal.clearTime === undefined
        ? relative(signal.expireTime) || 'cleared'
        : `cleared ${relative(signal.clearTime)}`,
      signal.source,
      signal.reason,
    ]),
  );
}

function tone({ clearTime, value }: Signal): Tone | undefined {
  if (clearTime !== undefined) return 'dim';
  return value >= 70 ? 'bad' : value >= 30 ? 'warn' : undefined;
}
