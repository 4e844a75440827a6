import { Option, type Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { collect, count, identifier, labelEntry, uniqueEntries } from '../values.ts';

interface Options extends RemoteOptions {
  state?: ('open' | 'closing' | 'closed' | 'close_degraded')[];
  agent?: string;
  parent?: string;
  root?: string;
  label?: [string, string][];
  limit: number;
  pageToken?: string;
}

export function taskList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List tasks, newest first',
    description:
      'Lists tasks, newest first. An orchestrator sees those that it opened, an agent those that it works on.',
    examples: [
      ['leasehold task list --state open', 'what is going on now'],
      ['leasehold task list --state close_degraded --json', 'what an operator should look at'],
      ['leasehold task list --label env=prod', 'what is labelled so'],
      ['leasehold task list --parent tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'what a task has handed on'],
    ],
  });
  command
    .addOption(
      new Option('--state <state...>', 'only tasks in one of these states').choices([
        'open',
        'closing',
        'closed',
        'close_degraded',
      ]),
    )
    .option('--agent <name>', 'only tasks of this agent')
    .option('--parent <task>', 'only tasks directly below this one', identifier('tsk'))
    .option('--root <task>', 'only tasks of this root’s tree', identifier('tsk'))
    .option('--label <key=value>', 'only tasks with this label; repeat it for more', collect(labelEntry))
    .option('--limit <number>', 'most tasks to list', count(10_000), 50)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const states = {
        open: remote.TaskState.OPEN,
        closing: remote.TaskState.CLOSING,
        closed: remote.TaskState.CLOSED,
        close_degraded: remote.TaskState.CLOSE_DEGRADED,
      };
      const labels = uniqueEntries('--label', options.label);
      const { items: tasks, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.TaskService.method.listTasks, {
          ...page,
          states: (options.state ?? []).map((state) => states[state]),
          agent: options.agent ?? '',
          parentTaskId: options.parent ?? '',
          rootTaskId: options.root ?? '',
          labels,
        });
        return { items: answer.tasks, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        remote.jsonLine(
          remote.ListTasksResponseSchema,
          remote.create(remote.ListTasksResponseSchema, { tasks, nextPageToken }),
        );
        return;
      }
      if (tasks.length === 0) remote.line('no tasks');
      else {
        remote.table(
          ['TASK', 'STATE', 'AGENT', 'OPENED', 'DEADLINE', 'INTENT'],
          tasks.map((task) => [
            task.taskId,
            { text: remote.taskStateName(task.state), tone: remote.taskTone(task.state) },
            task.agent,
            remote.relative(task.openTime),
            remote.relative(task.deadline),
            task.intent.length > 60 ? `${task.intent.slice(0, 59)}…` : task.intent,
          ]),
        );
      }
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
