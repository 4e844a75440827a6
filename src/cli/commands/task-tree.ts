import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  limit: number;
  pageToken?: string;
}

export function taskTree(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'tree',
    summary: 'Show a task and everything below it',
    description:
      'Shows a task and all that was handed on below it: who works on what, where each is in its life, and what became of ' +
      'its credentials.',
    examples: [
      ['leasehold task tree tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'for a person'],
      [
        'leasehold task tree tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --limit 10000 --json',
        'all of a large tree, for a script',
      ],
    ],
  });
  command
    .argument('<task>', 'task at the top of what is shown', identifier('tsk'))
    .option('--limit <number>', 'most tasks to show', count(20_000), 1_000)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (taskId: string, options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const { items: nodes, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.TaskService.method.listTaskTree, { taskId, ...page });
        return { items: answer.nodes, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        remote.jsonLine(
          remote.ListTaskTreeResponseSchema,
          remote.create(remote.ListTaskTreeResponseSchema, { nodes, nextPageToken }),
        );
        return;
      }
      remote.showTree(nodes);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
