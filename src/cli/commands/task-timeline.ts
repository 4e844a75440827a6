import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import type { TimelineEntry } from '../../gen/leasehold/v1/audit_service_pb.js';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  tree?: boolean;
  follow?: boolean;
  limit: number;
  pageToken?: string;
}

const pageSize = 500;
/** Between two looks of `--follow`. */
const pollMs = 1_000;
/** An event can be committed after one with a higher number: what is younger than this is read again. */
const settledMs = 30_000;

export function taskTimeline(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'timeline',
    summary: 'Tell what happened in a task, and who vouches for it',
    description:
      'Tells, in the order in which it was recorded: the intent, each decision, approval, credential, call, effect and ' +
      'settlement. VOUCHED BY says whose word it is: the broker’s, the tool’s, or that of the party itself (self).',
    examples: [
      ['leasehold task timeline tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'at a glance'],
      ['leasehold task timeline tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --tree', 'with the tasks below it'],
      ['leasehold task timeline tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --follow', 'and go on until it is settled'],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .option('--tree', 'also the tasks below it')
    .option('--follow', 'go on with what happens next, until the task is settled')
    .option('--limit <number>', 'most entries to tell', count(100_000), 10_000)
    .option('--page-token <token>', 'go on after an earlier one (next_page_token)')
    .action(async (taskId: string, options: Options) => {
      const remote = await import('../remote.ts');
      const { timelineHead, timelineLine } = await import('../timeline-view.ts');
      const client = remote.connect(options);
      const tree = options.tree === true;
      const page = (pageToken: string) =>
        client.call(remote.AuditService.method.listTimeline, { taskId, tree, pageSize, pageToken });
      const schema = remote.ListTimelineResponseSchema;
      const tell = (entries: TimelineEntry[], nextPageToken: string) => {
        if (options.json === true) remote.jsonLine(schema, remote.create(schema, { entries, nextPageToken }));
        else for (const entry of entries) timelineLine(entry, tree);
      };

      if (options.json !== true) timelineHead(tree);
      if (options.follow === true) {
        await follow(taskId, page, (entries) => tell(entries, ''), options.pageToken ?? '');
        return;
      }
      let told = 0;
      let nextPageToken = options.pageToken ?? '';
      do {
        const answer = await page(nextPageToken);
        nextPageToken = answer.nextPageToken;
        tell(answer.entries, nextPageToken);
        told += answer.entries.length;
      } while (nextPageToken !== '' && told < options.limit);
      if (nextPageToken !== '' && options.json !== true) remote.line(`more: --page-token ${nextPageToken}`);
    });
}

interface Answer {
  entries: TimelineEntry[];
  nextPageToken: string;
}

async function follow(
  taskId: string,
  page: (pageToken: string) => Promise<Answer>,
  tell: (entries: TimelineEntry[]) => void,
  from: string,
): Promise<void> {
  const seen = new Set<string>();
  let start = from;
  for (;;) {
    const before = Date.now() - settledMs;
    let token = start;
    let isSettled = false;
    do {
      const answer = await page(token);
      // An event that is two entries comes whole.
      const fresh = answer.entries.filter(({ eventId }) => !seen.has(eventId));
      for (const { eventId } of fresh) seen.add(eventId);
      if (fresh.length > 0) tell(fresh);
      isSettled ||= answer.entries.some((entry) => entry.kind === 'task.settled' && entry.taskId === taskId);
      token = answer.nextPageToken;
      const last = answer.entries.at(-1)?.eventTime;
      if (token !== '' && last !== undefined && Number(last.seconds) * 1_000 < before) start = token;
    } while (token !== '');
    if (isSettled) return;
    await sleep(pollMs);
  }
}
