import type { Task } from '../model.ts';
import type { TaskStore } from '../store.ts';

/** Deeper than any tree may be; a loop in the data ends here too. */
const maxDepth = 32;

/** Who has a hand in the task or in one above it: none of them is an approver of what it does. */
export async function lineageOf(tasks: Pick<TaskStore, 'get'>, task: Task): Promise<string[]> {
  const people = new Set<string>();
  let current: Task | undefined = task;
  for (let depth = 0; current !== undefined && depth < maxDepth; depth++) {
    people.add(current.opener);
    if (current.agentWorkload !== undefined) people.add(current.agentWorkload);
    current = current.parentTaskId === undefined ? undefined : await tasks.get(current.tenant, current.parentTaskId);
  }
  return [...people];
}
