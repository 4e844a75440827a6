import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifiers } from '../values.ts';

interface Options extends RemoteOptions {
  reason?: string;
  requestId?: string;
}

export function signalClear(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'clear',
    summary: 'Take signals back',
    description:
      'Takes signals back, all of them or none. Nothing that was settled comes back: the agent asks again, and policy decides.',
    examples: [
      ['leasehold signal clear sig_0198f1c2a4b57d3e8f60718293a4b5c6 --reason "patched"', 'names come from signal list'],
    ],
  });
  command.argument('<signal...>', 'signal identifiers', identifiers('sig')).option('--reason <text>', 'why; recorded');
  withRequestId(command).action(async (signalIds: string[], options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.SignalService.method.clearSignals, {
      requestId: options.requestId ?? randomUUID(),
      signalIds,
      reason: options.reason ?? '',
    });
    if (options.json === true) remote.jsonLine(remote.ClearSignalsResponseSchema, answer);
    else remote.showSignals(answer.signals);
  });
}
