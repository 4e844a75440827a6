import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function approvalGet(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'get',
    summary: 'Show one approval: the exact use, who has to agree, and what they said',
    examples: [
      ['leasehold approval get apr_0198f1c2a4b57d3e8f60718293a4b5c6', 'all that there is to know before deciding'],
      ['leasehold approval get apr_0198f1c2a4b57d3e8f60718293a4b5c6 --json', 'for a script'],
    ],
  });
  command
    .argument('<approval>', 'approval identifier', identifier('apr'))
    .action(async (approvalId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      const answer = await remote.connect(options).call(remote.ApprovalService.method.getApproval, { approvalId });
      if (options.json === true) remote.jsonLine(remote.GetApprovalResponseSchema, answer);
      else remote.showApproval(answer.approval);
    });
}
