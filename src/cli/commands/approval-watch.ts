import type { Command } from 'commander';
import { CliError } from '../cli-error.ts';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

export function approvalWatch(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'watch',
    summary: 'Wait until people have decided',
    description:
      'Shows the approval now and after each change, until it is decided. A connection that breaks is made again. Exits with ' +
      '0 when it is approved and with 6 when it is not: denied, not decided in time, or its task has ended.',
    examples: [
      ['leasehold approval watch apr_0198f1c2a4b57d3e8f60718293a4b5c6', 'one line per change'],
      [
        'leasehold approval watch apr_0198f1c2a4b57d3e8f60718293a4b5c6 && leasehold credential issue tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tool shop:write',
        'wait, then go on',
      ],
    ],
  });
  command
    .argument('<approval>', 'approval identifier', identifier('apr'))
    .action(async (approvalId: string, options: RemoteOptions) => {
      const remote = await import('../remote.ts');
      let state = remote.ApprovalState.UNSPECIFIED;
      const method = remote.ApprovalService.method.watchApproval;
      for await (const now of remote.connect(options).stream(method, { approvalId }, true)) {
        const approval = remote.required(now.approval);
        state = approval.state;
        if (options.json === true) {
          remote.jsonLine(remote.WatchApprovalResponseSchema, now);
          continue;
        }
        const votes = approval.quorums.map(({ given, count }) => `${given}/${count}`).join(', ');
        remote.line(
          `${new Date().toISOString().slice(11, 19)}  ${remote.approvalStateName(state)}  ${votes} approvers`,
        );
      }
      if (state !== remote.ApprovalState.APPROVED && state !== remote.ApprovalState.USED) {
        throw new CliError(
          'refused',
          `the approval is ${remote.approvalStateName(state)}: nothing may be issued on it`,
          {
            reason: 'NOT_APPROVED',
          },
        );
      }
    });
}
