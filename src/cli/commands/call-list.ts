import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count, identifier, instant } from '../values.ts';

interface Options extends RemoteOptions {
  task?: string;
  agent?: string;
  tool?: string;
  since?: number;
  until?: number;
  raised?: boolean;
  limit: number;
  pageToken?: string;
}

export function callList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List recorded tool calls, newest first',
    description:
      'Lists what agents and tools recorded. Operators and auditors see all tasks; an orchestrator and an agent name one.',
    examples: [
      ['leasehold call list --task tsk_0198f1c2a4b57d3e8f60718293a4b5c6', 'of one task'],
      ['leasehold call list --raised --since 2026-01-31T00:00:00Z', 'what did not fit what was granted'],
      [
        'leasehold call list --tool reports --json | jq ".calls[] | select(.reporter == \\"TOOL_CALL_REPORTER_TOOL\\")"',
        'attested by the tool',
      ],
    ],
  });
  command
    .option('--task <task>', 'only calls of this task', identifier('tsk'))
    .option('--agent <agent>', 'only calls of this agent')
    .option('--tool <tool>', 'only calls of this tool')
    .option('--since <time>', 'only those recorded at this time or later (RFC 3339)', instant)
    .option('--until <time>', 'only those recorded before this time (RFC 3339)', instant)
    .option('--raised', 'only those that do not fit what was granted')
    .option('--limit <number>', 'most calls to list', count(10_000), 50)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const { items: calls, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.ToolCallService.method.listToolCalls, {
          ...page,
          taskId: options.task ?? '',
          agent: options.agent ?? '',
          tool: options.tool ?? '',
          violationsOnly: options.raised ?? false,
          ...(options.since === undefined ? {} : { since: remote.timestampFromMs(options.since) }),
          ...(options.until === undefined ? {} : { until: remote.timestampFromMs(options.until) }),
        });
        return { items: answer.calls, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListToolCallsResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { calls, nextPageToken }));
        return;
      }
      remote.showCalls(calls);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}
