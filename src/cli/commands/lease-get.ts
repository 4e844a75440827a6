import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function leaseGet(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'get',
    summary: 'Show one lease, where its settlement stands and what to do next',
    examples: [['leasehold lease get lse_0198f1c2a4b57d3e8f60718293a4b5c6', 'one that a list calls irrevocable']],
  });
  command
    .argument('<lease>', 'lease identifier', identifier('lse'))
    .action(async (leaseId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.SettlementService.method.getLease, { leaseId });
      if (options.json === true) remote.jsonLine(remote.GetLeaseResponseSchema, answer);
      else remote.showLease(answer.lease);
    });
}
