import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  reason: string;
  requestId?: string;
}

export function leaseAbandon(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'abandon',
    summary: 'Declare a credential finished by hand, after which the broker tries no more',
    description:
      'For a credential whose target is gone for good, or that a person has ended where the broker cannot look. The broker ' +
      'tries once more first; when that works, the lease gets the outcome that it deserves instead. Refused while the lease ' +
      'is live, before its credential has run out, and before the broker has failed. Who and why is audited and shown with ' +
      'the lease. To take it up again: leasehold lease settle LEASE --retry.',
    examples: [
      [
        'leasehold lease abandon lse_0198f1c2a4b57d3e8f60718293a4b5c6 --reason "CHG-88: cluster east was dismantled"',
        'its target is no more',
      ],
    ],
  });
  command
    .argument('<lease>', 'lease identifier', identifier('lse'))
    .requiredOption('--reason <text>', 'what was done and why, in at least 10 characters; recorded');
  withRequestId(command).action(async (leaseId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.SettlementService.method.abandonLease, {
      requestId: options.requestId ?? randomUUID(),
      leaseId,
      reason: options.reason,
    });
    if (options.json === true) {
      remote.jsonLine(remote.AbandonLeaseResponseSchema, answer);
      return;
    }
    remote.showLease(answer.lease);
    if ((answer.lease?.settlement?.abandonedBy ?? '') === '') {
      remote.line();
      remote.line('not abandoned: the broker has just settled it after all');
    }
  });
}
