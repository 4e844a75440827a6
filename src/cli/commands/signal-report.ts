import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { score, subjectOf, withSubject, type SubjectOptions } from '../signal-subject.ts';
import { duration } from '../values.ts';

interface Options extends RemoteOptions, SubjectOptions {
  value?: number;
  reason?: string;
  for?: number;
  requestId?: string;
}

export function signalReport(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'report',
    summary: 'Report a signal: policy reads it, and open leases that it concerns are decided again at once',
    description:
      'Puts a signal in force. Kinds are risk, owner_left, image_vulnerable, anomaly and others (docs/signals.md), or one of ' +
      'your own that begins with x_. A later report of the same kind about the same subject takes the place of the earlier one.',
    examples: [
      ['leasehold signal report owner_left --agent reconciler --reason "left on Friday"', 'until it is cleared'],
      [
        'leasehold signal report risk --value 85 --workload spiffe://example.org/agent/reconciler --for 1h',
        'a risk score for an hour',
      ],
    ],
  });
  withSubject(command.argument('<kind>', 'what is said, such as owner_left'), 'about')
    .option('--value <number>', 'how much, 0 to 100; without it 100', score)
    .option('--reason <text>', 'why; recorded, never decides')
    .option('--for <duration>', 'how long it is in force; without it until it is cleared', duration);
  withRequestId(command).action(async (kind: string, options: Options) => {
    const subject = subjectOf(options);
    if (subject === undefined) {
      throw new CliError('usage', 'name what the signal is about: --agent, --workload, --tool or --task', {
        reason: 'USAGE',
      });
    }
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.SignalService.method.reportSignals, {
      requestId: options.requestId ?? randomUUID(),
      signals: [
        {
          subject,
          kind,
          reason: options.reason ?? '',
          ...(options.value === undefined ? {} : { value: options.value }),
          ...(options.for === undefined ? {} : { expireTime: remote.timestampFromMs(Date.now() + options.for) }),
        },
      ],
    });
    if (options.json === true) remote.jsonLine(remote.ReportSignalsResponseSchema, answer);
    else remote.showSignals(answer.signals);
  });
}
