import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier } from '../values.ts';

interface Options extends RemoteOptions {
  limit: number;
  pageToken?: string;
}

export function auditList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'Show what was recorded about a task, oldest first',
    examples: [
      ['leasehold audit list tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'who did what, and what became of it'],
      ['leasehold audit list tsk_0198f1c2a4b57d3e8f60718293a4b5c6 --json', 'every particular'],
    ],
  });
  command
    .argument('<task>', 'task identifier', identifier('tsk'))
    .option('--limit <number>', 'most events to list', count(10_000), 1_000)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (taskId: string, options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const { items: events, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.AuditService.method.listAuditEvents, { ...page, taskId });
        return { items: answer.events, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListAuditEventsResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { events, nextPageToken }));
        return;
      }
      if (events.length === 0) remote.line('no events');
      else {
        remote.table(
          ['TIME', 'EVENT', 'ACTOR', 'LEASE', 'DETAIL'],
          events.map((event) => [
            event.eventTime === undefined ? '' : remote.iso(event.eventTime),
            event.kind,
            event.actor,
            event.leaseId || '-',
            shortened(
              Object.entries(event.detail ?? {})
                .map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
                .join(' '),
            ),
          ]),
        );
      }
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}

/** Enough to see what it was; `--json` has the whole. */
function shortened(text: string): string {
  return text.length > 160 ? `${text.slice(0, 159)}…` : text;
}
