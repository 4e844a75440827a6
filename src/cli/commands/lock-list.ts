import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  ended?: boolean;
  task?: string;
  limit: number;
  pageToken?: string;
}

export function lockList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List the locks in force, newest first',
    examples: [
      ['leasehold lock list', 'what is locked now'],
      ['leasehold lock list --ended', 'and what was'],
    ],
  });
  command
    .option('--ended', 'also locks that were lifted or have run out')
    .option('--task <task>', 'only locks on this very task', identifier('tsk'))
    .option('--limit <number>', 'most locks to list', count(10_000), 50)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const { items: locks, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.LockService.method.listLocks, {
          ...page,
          includeEnded: options.ended ?? false,
          taskId: options.task ?? '',
        });
        return { items: answer.locks, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListLocksResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { locks, nextPageToken }));
        return;
      }
      remote.showLocks(locks);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
