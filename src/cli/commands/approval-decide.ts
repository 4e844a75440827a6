import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  comment?: string;
  group?: boolean;
  requestId?: string;
}

export function approvalApprove(parent: Command): void {
  decide(parent, 'approve', {
    summary: 'Say yes to one exact use',
    description:
      'Says yes. Where policy asks for several people, it stays pending until all have said so. Whoever asked for the work ' +
      'can never approve it. Look at it first with leasehold approval get.',
    examples: [
      [
        'leasehold approval approve apr_0198f1c2a4b57d3e8f60718293a4b5c6 --comment "checked with Ann"',
        'one use, with a reason for the audit',
      ],
      [
        'leasehold approval approve apr_0198f1c2a4b57d3e8f60718293a4b5c6 --group',
        'and all that was asked for together with it',
      ],
    ],
  });
}

export function approvalDeny(parent: Command): void {
  decide(parent, 'deny', {
    summary: 'Say no to one exact use',
    description:
      'Says no, which is final: one is enough. The same use is not asked for again while it cools down, as policy says.',
    examples: [
      [
        'leasehold approval deny apr_0198f1c2a4b57d3e8f60718293a4b5c6 --comment "not this customer"',
        'the requester sees the reason',
      ],
      [
        'leasehold approval deny apr_0198f1c2a4b57d3e8f60718293a4b5c6 --group',
        'and all that was asked for together with it',
      ],
    ],
  });
}

function decide(
  parent: Command,
  name: 'approve' | 'deny',
  texts: { summary: string; description: string; examples: readonly (readonly [string, string])[] },
): void {
  const command = defineRemote(parent, { name, ...texts });
  command
    .argument('<approval>', 'approval identifier', identifier('apr'))
    .option('--comment <text>', 'why; recorded, and shown to the requester')
    .option('--group', 'decide all of its group that wait for you');
  withRequestId(command).action(async (approvalId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.ApprovalService.method.decideApproval, {
      requestId: options.requestId ?? randomUUID(),
      approvalId,
      verdict: name === 'approve' ? remote.Verdict.APPROVE : remote.Verdict.DENY,
      comment: options.comment ?? '',
      wholeGroup: options.group ?? false,
    });
    if (options.json === true) {
      remote.jsonLine(remote.DecideApprovalResponseSchema, answer);
      return;
    }
    remote.showApproval(answer.approval);
    if (answer.others.length === 0) return;
    remote.line();
    remote.showApprovals(answer.others);
  });
}
