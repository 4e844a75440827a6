import { Option, type Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

const states = ['pending', 'approved', 'used', 'expired', 'denied', 'timed_out', 'cancelled'] as const;

interface Options extends RemoteOptions {
  state?: (typeof states)[number][];
  task?: string;
  group?: string;
  limit: number;
  pageToken?: string;
}

export function approvalList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List approvals that you may decide or asked for, newest first',
    examples: [
      ['leasehold approval list --state pending', 'what waits for people'],
      ['leasehold approval list --task tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'what one task has asked for'],
    ],
  });
  command
    .addOption(new Option('--state <state...>', 'only approvals in one of these states').choices(states))
    .option('--task <task>', 'only approvals of this task', identifier('tsk'))
    .option('--group <approval>', 'only approvals of this group', identifier('apr'))
    .option('--limit <number>', 'most approvals to list', count(10_000), 50)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const values = {
        pending: remote.ApprovalState.PENDING,
        approved: remote.ApprovalState.APPROVED,
        used: remote.ApprovalState.USED,
        expired: remote.ApprovalState.EXPIRED,
        denied: remote.ApprovalState.DENIED,
        timed_out: remote.ApprovalState.TIMED_OUT,
        cancelled: remote.ApprovalState.CANCELLED,
      };
      const { items: approvals, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.ApprovalService.method.listApprovals, {
          ...page,
          states: (options.state ?? []).map((state) => values[state]),
          taskId: options.task ?? '',
          groupId: options.group ?? '',
        });
        return { items: answer.approvals, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListApprovalsResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { approvals, nextPageToken }));
        return;
      }
      remote.showApprovals(approvals);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
